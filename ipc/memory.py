"""Shared memory without a name: made by the supervisor, mapped by the two ends.

A segment is a file descriptor and nothing else. It travels by inheritance or over a
unix socket and vanishes with its last holder, so no crash leaves anything in /dev/shm.

    sealed=False  posix_ipc segment, its name unlinked at once: peers of our own uid
    sealed=True   memfd with SHRINK|GROW|SEAL: a peer of another uid could truncate an
                  unsealed one, which is SIGBUS at our next access

Invariant: every page is allocated before anyone maps it; otherwise a full /dev/shm is
SIGBUS at the first touch instead of an error here.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat

import posix_ipc

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class BadSegment(Exception):
    """The descriptor is no shared memory of the size that was promised."""


def create(size_bytes: int, *, sealed: bool) -> int:
    """A zeroed, allocated segment. Raises OSError (ENOSPC: /dev/shm is full)."""
    fd = _open_sealable() if sealed else _open_unlinked()
    try:
        os.posix_fallocate(fd, 0, size_bytes)
        if sealed:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def attach(fd: int, *, minimum_bytes: int) -> mmap.mmap:
    """Map the whole segment and close `fd`, also when it is refused."""
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size < minimum_bytes:
            raise BadSegment(f"{facts.st_size} bytes, expected {minimum_bytes}")
        return mmap.mmap(fd, facts.st_size)
    finally:
        os.close(fd)


def _open_sealable() -> int:
    return os.memfd_create("cortex", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _open_unlinked() -> int:
    segment = posix_ipc.SharedMemory(None, posix_ipc.O_CREX, mode=0o600)
    segment.unlink()
    fd: int = segment.fd
    os.set_inheritable(fd, False)
    return fd
