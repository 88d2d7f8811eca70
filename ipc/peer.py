"""Who is at the other end of a unix socket, as the kernel knows it.

Used by the supervisors to authorise. The facts are of the moment of connect(); a pid
may be gone or reused by now, uid and groups are what may be decided on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from dataclasses import dataclass

_SO_PEERGROUPS = 59
_CREDENTIALS = struct.Struct("iII")
_GID_BYTES = 4
_GUESS_BYTES = 64 * _GID_BYTES


@dataclass(frozen=True, slots=True)
class Peer:
    """`groups` are the supplementary ones; `gid` need not be among them."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]


def peer_of(sock: socket.socket) -> Peer:
    """The process that connected. Raises OSError."""
    size = _CREDENTIALS.size
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, gid = _CREDENTIALS.unpack(packed)
    return Peer(pid, uid, gid, _groups(sock.fileno()))


def is_operator(peer: Peer) -> bool:
    """Root, ourselves, or our group: the socket's own mode says the same."""
    return peer.uid in (0, os.geteuid()) or os.getegid() in (peer.gid, *peer.groups)


def _groups(fd: int) -> tuple[int, ...]:
    """By libc: `socket.getsockopt` takes 256 groups at most, a directory has more."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_uint(_GUESS_BYTES)
    for _ in range(2):  # the first answer says how much room it takes
        room = ctypes.create_string_buffer(size.value)
        where = (fd, socket.SOL_SOCKET, _SO_PEERGROUPS, room, ctypes.byref(size))
        if libc.getsockopt(*where) == 0:
            count = size.value // _GID_BYTES
            return struct.unpack_from(f"={count}I", room)
        if ctypes.get_errno() != errno.ERANGE:
            break
    code = ctypes.get_errno()
    raise OSError(code, f"SO_PEERGROUPS: {os.strerror(code)}")
