"""attach.sock, the supervisor's side: who may use the devices, and with which rings.

Each front-end worker connects by itself after its fork (protocol: `ipc.attachwire`).
The connection is the lease: EOF is the death of the worker, and nothing has to be given
back. No request passes here; those go through the rings that are handed out.

    accepted ── Hello, in time, right protocol, allowed, a seat free ──▶ attached
        │                                                                   │
        └── anything else: Refused, closed      EOF, garbage, unread: on_lost, closed

Invariant: the server never waits for a worker, and what one does or sends ends that one
connection only. `on_lost` is called once for each `on_attached`, never inside a call of
the supervisor's, and not for a link that the supervisor closes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from ipc.acceptor import Acceptor
from ipc.attachwire import (
    ATTACH,
    PROTOCOL,
    Down,
    Hello,
    Pair,
    Quarantine,
    Refused,
    Welcome,
)
from ipc.codec import MessageError
from ipc.errors import ServiceError, error_for
from ipc.packet import (
    PacketClosed,
    PacketTruncated,
    close_fds,
    receive_packet,
    send_packet,
)
from ipc.peer import Peer

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from ipc.pair import PairFds

HELLO_TIMEOUT_S = 5.0
_MAX_WAITING = 64
"""Connections that have not said hello; more are closed at once."""


class WorkerLink:
    """An attached worker. `id` is never used again by this supervisor."""

    def __init__(
        self, seat: _Connection, number: int, hello: Hello, *, drop: Callable[[], None]
    ) -> None:
        self.id = number
        self.peer = seat.peer
        self.role = hello.role
        self.name = hello.name
        self.build = hello.build
        self._seat = seat
        self._drop = drop

    def send_pair(
        self, device: str, generation: int, pair: PairFds, sealed: bool
    ) -> None:
        """A device is up; the descriptors stay the caller's."""
        self._send(Pair(device, generation, sealed), pair.numbers())

    def send_down(
        self,
        device: str,
        generation: int,
        reason: str,
        suspects: tuple[tuple[int, int], ...] = (),
        convicted: tuple[int, ...] = (),
    ) -> None:
        """The device died or will be killed: not another read of these rings."""
        self._send(Down(device, generation, reason, suspects, convicted))

    def close(self) -> None:
        """Drop the worker; `on_lost` is not called."""
        self._drop()

    def _send(self, message: Pair | Down, fds: tuple[int, ...] = ()) -> None:
        if not self._seat.send(message, fds):
            self._seat.break_soon()


class _Connection:
    """One accepted socket, before and after its Hello."""

    def __init__(
        self,
        sock: socket.socket,
        peer: Peer,
        loop: AbstractEventLoop,
        *,
        hello_timeout_s: float,
    ) -> None:
        self.peer = peer
        self.worker: WorkerLink | None = None
        self.on_broken: Callable[[], None] = lambda: None
        self._sock = sock
        self._loop = loop
        self._timer = loop.call_later(hello_timeout_s, self._broken)

    def start(self, on_readable: Callable[[], None]) -> None:
        self._loop.add_reader(self._sock, on_readable)

    def receive(self) -> Hello | Quarantine | None:
        """Hello, then Quarantines; None = nothing now. Raises PacketClosed,
        MessageError."""
        try:
            received = receive_packet(self._sock)
        except PacketTruncated as error:
            raise MessageError("too large") from error
        if received is None:
            return None
        record, fds = received
        close_fds(fds)  # a worker has none to give
        message = ATTACH.decode(record)
        wanted = Hello if self.worker is None else Quarantine
        if not isinstance(message, wanted):
            raise MessageError(f"{type(message).__name__} is not expected here")
        self._timer.cancel()
        return message

    def send(
        self, message: Welcome | Refused | Pair | Down, fds: tuple[int, ...] = ()
    ) -> bool:
        """False: the worker is gone or doesn't read."""
        if self._sock.fileno() < 0:
            return True  # closed by us a moment ago
        try:
            return send_packet(self._sock, ATTACH.encode(message), fds)
        except PacketClosed:
            return False

    def break_soon(self) -> None:
        """Report the end from the loop, not from inside the caller's own step."""
        self._loop.call_soon(self._broken)

    def _broken(self) -> None:
        if self._sock.fileno() >= 0:
            self.on_broken()

    def close(self) -> None:
        self._timer.cancel()
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()


class AttachServer:
    """Owns the listener and every connection of attach.sock."""

    def __init__(  # noqa: PLR0913  the supervisor's rules and its two callbacks
        self,
        listener: socket.socket,
        *,
        on_attached: Callable[[WorkerLink], None],
        on_lost: Callable[[WorkerLink], None],
        limit: int,
        allow: Callable[[Peer], bool],
        on_quarantine: Callable[[WorkerLink, Quarantine], None] | None = None,
        hello_timeout_s: float = HELLO_TIMEOUT_S,
    ) -> None:
        self._on_quarantine = on_quarantine
        self._acceptor = Acceptor(listener, self._add)
        self._on_attached = on_attached
        self._on_lost = on_lost
        self._limit = limit
        self._allow = allow
        self._hello_timeout_s = hello_timeout_s
        self._seats: set[_Connection] = set()
        self._next_id = 1

    def start(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._acceptor.start(loop)

    def close(self) -> None:
        """Every worker sees EOF; `on_lost` is not called."""
        self._acceptor.close()
        for seat in self._seats:
            seat.close()
        self._seats.clear()

    def _add(self, sock: socket.socket, peer: Peer) -> None:
        if sum(seat.worker is None for seat in self._seats) >= _MAX_WAITING:
            sock.close()
            return
        timeout_s = self._hello_timeout_s
        seat = _Connection(sock, peer, self._loop, hello_timeout_s=timeout_s)
        seat.on_broken = lambda: self._lose(seat)
        self._seats.add(seat)
        seat.start(lambda: self._read(seat))

    def _read(self, seat: _Connection) -> None:
        try:
            message = seat.receive()
        except (PacketClosed, MessageError):
            self._lose(seat)
            return
        if isinstance(message, Hello):
            self._admit(seat, message)
        elif message is not None and seat.worker is not None and self._on_quarantine:
            self._on_quarantine(seat.worker, message)

    def _admit(self, seat: _Connection, hello: Hello) -> None:
        refusal = self._refusal(seat.peer, hello)
        if refusal is not None:
            seat.send(Refused(refusal.to_wire()))
            self._remove(seat)
            return
        number, self._next_id = self._next_id, self._next_id + 1
        worker = WorkerLink(seat, number, hello, drop=lambda: self._remove(seat))
        seat.worker = worker
        if seat.send(Welcome(number)):
            self._on_attached(worker)
        else:
            self._remove(seat)

    def _refusal(self, peer: Peer, hello: Hello) -> ServiceError | None:
        """Why this worker may not attach; None = it may."""
        if not self._allow(peer):
            return error_for(
                "insufficient_permissions", f"uid {peer.uid} may not use the devices"
            )
        if hello.protocol != PROTOCOL:
            return error_for(
                "invalid_request_error",
                f"attach protocol {hello.protocol} is not spoken here, {PROTOCOL} is",
                fields={"protocol": PROTOCOL},
            )
        attached = sum(seat.worker is not None for seat in self._seats)
        if attached >= self._limit:
            return error_for("overloaded", f"{attached} workers are attached already")
        return None

    def _lose(self, seat: _Connection) -> None:
        self._remove(seat)
        if seat.worker is not None:
            self._on_lost(seat.worker)

    def _remove(self, seat: _Connection) -> None:
        self._seats.discard(seat)
        seat.close()
