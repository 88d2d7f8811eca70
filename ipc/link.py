"""The line between the supervisor and one device: orders down, answers and faults up.

    supervisor ──── SEQPACKET socketpair ──── device
       Attach + 5 fds, Detach, Load, Unload, Stop, Convert, Inject →
                                                                ←  Hello, LoadProgress,
                                 Loaded, LoadFailed, Unloaded, Fault, Converted

One record is one message of `ipc.messages`. Reading never waits; writing waits for a
peer that doesn't read, but only so long, so that neither a stopped device nor a busy
supervisor holds up the other for ever.

Invariant: EOF is the death of the peer and nothing else is.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence

from ipc.messages import Message, MessageError, decode, encode
from ipc.packet import (
    MAX_PACKET_BYTES,
    PacketClosed,
    PacketTruncated,
    close_fds,
    receive_packet,
    send_packet,
)

SEND_TIMEOUT_S = 0.5


class LinkClosed(Exception):
    """The process at the other end is gone."""


class LinkFull(Exception):
    """The process at the other end has not read for too long."""


class Link:
    """One end. Owns the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.set_inheritable(False)  # a spawned process got it open across exec

    @classmethod
    def from_fd(cls, fd: int) -> Link:
        """The end that a parent left us; takes the descriptor over."""
        return cls(socket.socket(fileno=fd))

    def send(
        self,
        message: Message,
        fds: Sequence[int] = (),
        *,
        timeout_s: float = SEND_TIMEOUT_S,
    ) -> None:
        """Raises LinkClosed, LinkFull, and MessageError when the message is too big.

        The descriptors stay ours; the peer gets its own.
        """
        record = encode(message)
        if len(record) > MAX_PACKET_BYTES:
            raise MessageError(f"{type(message).__name__} of {len(record)} bytes")
        deadline_s = time.monotonic() + timeout_s
        try:
            while not send_packet(self._sock, record, fds):
                self._await_room(deadline_s)
        except PacketClosed as error:
            raise LinkClosed from error

    def receive(self) -> tuple[Message, list[int]] | None:
        """The next message and its descriptors, now the caller's; None = none now.

        Raises LinkClosed, and MessageError when the peer talks nonsense; the next call
        then goes on behind it.
        """
        try:
            received = receive_packet(self._sock)
        except PacketClosed as error:
            raise LinkClosed from error
        except PacketTruncated as error:
            raise MessageError("a record or its descriptors were cut off") from error
        if received is None:
            return None
        record, fds = received
        try:
            return decode(record), fds
        except MessageError:
            close_fds(fds)
            raise

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def _await_room(self, deadline_s: float) -> None:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise LinkFull
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        poll.poll(left_s * 1000)


def create_link() -> tuple[Link, Link]:
    """Two ends, alike; one stays, the other's descriptor goes to the child."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Link(ours), Link(theirs)
