"""On whose behalf a request is."""

from __future__ import annotations

import falcon
import falcon.testing
import pytest

from neurond.serving.edge import Request
from neurond.serving.principal import HEADER, of_address, principal_of


@pytest.mark.parametrize(
    ("address", "principal"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("a socket" * 99, ("a socket" * 99)[:128]),
    ],
)
def test_a_host_is_one_principal_however_many_addresses_it_has(
    address: str, principal: str
) -> None:
    assert of_address(address) == principal


def request(named: str = "") -> Request:
    headers = {HEADER: named} if named else {}
    scope = falcon.testing.create_scope(headers=headers, remote_addr="10.0.0.7")

    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect"}

    return Request(scope, receive)


def test_only_a_trusted_caller_says_for_whom_it_asks() -> None:
    assert principal_of(request("person"), trusts_header=True) == "person"
    assert principal_of(request("person"), trusts_header=False) == "10.0.0.7"
    assert principal_of(request(), trusts_header=True) == "10.0.0.7"
    assert len(principal_of(request("x" * 999), trusts_header=True)) == 128
