"""On whose behalf a request is: whoever shares a node gets a fair part of it (S31).

Front-end worker and gateway; pure but for reading a request. Keys of clients are not
checked anywhere yet, so a key says nothing: whoever makes up many would get many parts.
What can't be made up is where a connection comes from. A gateway says for whom it asks,
and is believed where it has proven itself with the node's token.
"""

from __future__ import annotations

import ipaddress

from neurond.serving.edge import Request

HEADER = "x-cortex-principal"
_LONGEST = 128
_IPV6_BITS = 64
"""What one host or household has of an IPv6 address to itself begins behind these."""


def principal_of(req: Request, *, trusts_header: bool) -> str:
    """The caller's principal, or whom a trusted caller names; "" where nobody knows."""
    named = (req.get_header(HEADER) or "") if trusts_header else ""
    if named:
        return named[:_LONGEST]
    host, *_ = req.scope.get("client") or ("",)
    return of_address(str(host))


def of_address(host: str) -> str:
    """IPv4 as it is, IPv6 by its network; other transports as they name it."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host[:_LONGEST]
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _IPV6_BITS), strict=False))
