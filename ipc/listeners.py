"""A daemon's listening sockets: opened once by the supervisor, inherited by number.

They stay open while a child is replaced, so no connection is refused meanwhile.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import NamedTuple

_BACKLOG = 2048
_MAX_PORT = 65535


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return (
            f"[{self.host}]:{self.port}"
            if ":" in self.host
            else ":".join((self.host, str(self.port)))
        )


def parse(text: str) -> Address:
    """`host:port`, `[v6]:port` or `:port`. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_port = port.isascii() and port.isdigit() and int(port) <= _MAX_PORT
    if not colon or not is_port or (":" in bare) != host.startswith("["):
        raise ValueError(f"{text!r} must be HOST:PORT")
    return Address(bare or "0.0.0.0", int(port))


def take(name: str, text: str, inherited: Mapping[str, socket.socket]) -> socket.socket:
    """The service manager's socket of that name, else a new one. Raises OSError."""
    if name in inherited:
        inherited[name].setblocking(False)
        return inherited[name]
    address = parse(text)
    try:
        return _listening(address)
    except OSError as error:
        raise OSError(error.errno, f"{text}: {error.strerror}") from error


def _listening(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def bound(listener: socket.socket) -> str:
    """Where it really listens, port 0 resolved."""
    name = listener.getsockname()
    return str(Address(name[0], name[1])) if isinstance(name, tuple) else str(name)
