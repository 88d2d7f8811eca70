"""One record with descriptors on a SEQPACKET socket: under link, attach and zygote.

    sendmsg:  payload, whole or not at all  +  SCM_RIGHTS [fd, fd, …]  (at most 16)

Nothing here waits. The sockets are non-blocking whoever made them, since every call
says so itself.

Invariant: a descriptor that arrives is close-on-exec, and is either handed to the
caller or closed; a record that lost its end or a descriptor on the way is refused.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence

MAX_PACKET_BYTES = 160 << 10
"""Under the kernel's usual send buffer of 208 KiB, its book-keeping included."""
MAX_FDS = 16

_GONE = (BrokenPipeError, ConnectionResetError)
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
_RECEIVE = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_SEND = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class PacketClosed(Exception):
    """The other end is gone."""


class PacketTruncated(Exception):
    """A record was too large for us, or brought more descriptors than we could take."""


def send_packet(sock: socket.socket, payload: bytes, fds: Sequence[int] = ()) -> bool:
    """False: the peer doesn't read, its buffer is full. Raises PacketClosed."""
    if len(payload) > MAX_PACKET_BYTES or len(fds) > MAX_FDS:
        raise ValueError(f"a packet of {len(payload)} bytes and {len(fds)} descriptors")
    rights = array.array("i", fds)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
    try:
        sock.sendmsg([payload], ancillary, _SEND)
    except BlockingIOError:
        return False
    except _GONE as error:
        raise PacketClosed from error
    return True


def receive_packet(sock: socket.socket) -> tuple[bytes, list[int]] | None:
    """The next record; None = nothing now. Raises PacketClosed, PacketTruncated."""
    try:
        payload, ancillary, flags, _ = sock.recvmsg(
            MAX_PACKET_BYTES, _ANCILLARY_BYTES, _RECEIVE
        )
    except BlockingIOError:
        return None
    except _GONE as error:
        raise PacketClosed from error
    fds = _descriptors(ancillary)
    if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
        close_fds(fds)
        raise PacketTruncated
    if not payload and not fds:
        raise PacketClosed  # nobody sends an empty record
    return payload, fds


def close_fds(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)
