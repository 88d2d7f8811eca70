"""Accepts connections on a listening socket, inside somebody's loop.

Used by the supervisors for control.sock and attach.sock.

Invariant: nothing a client does, and no want of descriptors, stops or spins the loop.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from ipc.peer import Peer, peer_of

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

_PER_TURN = 32
_PAUSE_S = 0.5


class Acceptor:
    """Owns the listener. `on_connection` gets a non-blocking socket and its peer."""

    def __init__(
        self,
        listener: socket.socket,
        on_connection: Callable[[socket.socket, Peer], None],
    ) -> None:
        self._listener = listener
        self._on_connection = on_connection
        listener.setblocking(False)

    def start(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Stop listening; the socket's file stays, for the next bind to replace."""
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()

    def _accept(self) -> None:
        for _ in range(_PER_TURN):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                self._pause()
                return
            self._introduce(sock)

    def _introduce(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        try:
            peer = peer_of(sock)
        except OSError:
            sock.close()
            return
        self._on_connection(sock, peer)

    def _pause(self) -> None:
        """Out of descriptors: the connection waits in the queue, and so do we."""
        self._loop.remove_reader(self._listener)
        self._loop.call_later(_PAUSE_S, self._resume)

    def _resume(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)
