"""Addresses of daemons and the sockets behind them."""

from __future__ import annotations

import socket

import pytest

from ipc import listeners


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        ("0.0.0.0:31313", "0.0.0.0", 31313, "0.0.0.0:31313"),
        ("localhost:0", "localhost", 0, "localhost:0"),
        (":8080", "0.0.0.0", 8080, "0.0.0.0:8080"),
        ("[::1]:80", "::1", 80, "[::1]:80"),
    ],
)
def test_an_address_is_a_host_and_a_port(
    text: str, host: str, port: int, shown: str
) -> None:
    address = listeners.parse(text)

    assert address == (host, port)
    assert str(address) == shown


@pytest.mark.parametrize(
    "text", ["", "8080", "host", "host:", "host:http", "host:65536", "::1:80", "a:-1"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be HOST:PORT"):
        listeners.parse(text)


def test_port_0_becomes_a_port_of_its_own() -> None:
    with listeners.take("http", "127.0.0.1:0", {}) as listener:
        host, _, port = listeners.bound(listener).rpartition(":")
        assert host == "127.0.0.1"
        with socket.create_connection((host, int(port)), 5):
            pass


def test_the_service_managers_socket_goes_before_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        taken = listeners.take("http", "127.0.0.1:1", {"http": given})

        assert taken is given
        assert not given.getblocking()


def test_an_address_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        with pytest.raises(OSError, match=f"{address}: Address already in use"):
            listeners.take("http", address, {})
