"""Where a node is reached. Pure; used by configuration, fleet and relay.

The configured address is the only one that traffic goes to. What a node says about its
own addresses is for people: it often knows itself as localhost (S40).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

DEFAULT_PORT = 13131
_NOWHERE = ("", "localhost", "localhost.localdomain")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`http://host:port` of a node, as its operator knows it."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        """`host:port`, as the Host header wants it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"http://{self.authority}"


def parse(text: str) -> Endpoint:
    """The endpoint in `text`. Raises ValueError, in words for the operator."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{text!r} is not a URL: {error}") from error
    if parts.scheme != "http":
        raise ValueError(f"{text!r} must begin with http://")
    if not parts.hostname or not _is_bare(parts) or not _is_plain(text):
        raise ValueError(f"{text!r} must be http://HOST:PORT and nothing else")
    return Endpoint(parts.hostname, DEFAULT_PORT if port is None else port)


def seen_from_here(reported: str, configured: Endpoint) -> str:
    """An address that a node reports, usable from this host.

    A loopback or wildcard host means the node itself: that is the configured host.
    """
    has_scheme = "://" in reported
    try:
        parts = urlsplit(reported if has_scheme else f"//{reported}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ""
    if port is None:
        return ""
    named = Endpoint(configured.host if _is_itself(host) else host, port)
    return str(named) if has_scheme else named.authority


def _is_bare(parts: SplitResult) -> bool:
    extras = (parts.query, parts.fragment, parts.username, parts.password)
    return parts.path in ("", "/") and not any(extras)


def _is_plain(text: str) -> bool:
    """It stands in a request's Host header: no blanks, no controls, no quirks."""
    return text.isascii() and text.isprintable() and " " not in text


def _is_itself(host: str) -> bool:
    if host in _NOWHERE:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)
