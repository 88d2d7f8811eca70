"""The node's two unix sockets, bound before anything else.

Supervisor. control.sock comes first: that it can't be bound is how a second node on the
same folder is told to go.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from ipc import listeners
from ipc.unixsocket import bind_unix
from neurond.launch import Folders, Sockets

_CONTROL_MODE = 0o660
_ATTACH_MODE = 0o660


@dataclass(frozen=True, slots=True)
class Listeners:
    control: socket.socket
    attach: socket.socket

    def bound(self, sockets: Sockets) -> dict[str, str]:
        """Where HTTP and metrics really listen; nothing once they are closed."""
        named = {"http": sockets.http, "metrics": sockets.metrics}
        opened = {name: sock for name, sock in named.items() if sock.fileno() >= 0}
        return {name: listeners.bound(sock) for name, sock in opened.items()}


def bind(folders: Folders) -> Listeners:
    """Raises OSError naming the path."""
    return Listeners(
        control=bind_unix(folders.control, socket.SOCK_STREAM, _CONTROL_MODE),
        attach=bind_unix(folders.attach, socket.SOCK_SEQPACKET, _ATTACH_MODE),
    )


def remove(folders: Folders) -> None:
    for path in (folders.control, folders.attach):
        path.unlink(missing_ok=True)
