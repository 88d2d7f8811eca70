"""Addresses of nodes: the configured one and those that a node tells."""

from __future__ import annotations

import pytest

from cortexd.nodes import endpoint
from cortexd.nodes.endpoint import Endpoint, seen_from_here


@pytest.mark.parametrize(
    ("text", "host", "port", "authority"),
    [
        ("http://10.0.0.11:13131", "10.0.0.11", 13131, "10.0.0.11:13131"),
        ("http://gpu-01:80/", "gpu-01", 80, "gpu-01:80"),
        ("http://gpu-01", "gpu-01", 13131, "gpu-01:13131"),
        ("http://[fd00::1]:9", "fd00::1", 9, "[fd00::1]:9"),
    ],
)
def test_an_endpoint_is_a_host_and_a_port(
    text: str, host: str, port: int, authority: str
) -> None:
    found = endpoint.parse(text)

    assert found == Endpoint(host, port)
    assert found.authority == authority


@pytest.mark.parametrize(
    "text",
    [
        "gpu-01:13131",
        "https://gpu-01:13131",
        "http://",
        "http://a:b",
        "http://a:99999",
        "http://a/path",
        "http://a?q=1",
        "http://user:secret@a:1",
        "http://a b:1",
        "http://a\r\nX-Evil: 1",
        "http://é:1",
        "",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        endpoint.parse(text)


@pytest.mark.parametrize(
    ("reported", "seen"),
    [
        ("localhost:13132", "gpu-01:13132"),
        ("127.0.0.1:13132", "gpu-01:13132"),
        ("127.9.9.9:13132", "gpu-01:13132"),
        ("0.0.0.0:13132", "gpu-01:13132"),
        ("[::1]:13132", "gpu-01:13132"),
        ("[::]:13132", "gpu-01:13132"),
        ("[::ffff:127.0.0.1]:13132", "gpu-01:13132"),
        (":13132", "gpu-01:13132"),
        ("http://localhost:13131", "http://gpu-01:13131"),
        ("http://LOCALHOST:13131/x", "http://gpu-01:13131"),
        ("10.1.1.1:13132", "10.1.1.1:13132"),
        ("other:13132", "other:13132"),
        ("localhost", ""),
        ("localhost:port", ""),
        ("http://[bad", ""),
    ],
)
def test_s40_a_node_that_says_localhost_means_itself(reported: str, seen: str) -> None:
    assert seen_from_here(reported, Endpoint("gpu-01", 13131)) == seen
