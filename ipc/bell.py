"""A doorbell between two processes: an eventfd, rung only for a peer that sleeps.

Held by both ends of a channel. It carries no data: a ring of any number of times is one
wake-up, and a spare wake-up costs a look at an empty ring.

Invariant: `drain` never blocks. Both ends share one open file, so a peer could clear
O_NONBLOCK for us too; the read asks for RWF_NOWAIT by itself. (A write has no such
flag: a peer that also fills the counter hangs whoever rings next, until the deadline of
its phase ends it.)
"""

from __future__ import annotations

import os


def create_bell() -> int:
    """The descriptor of a silent bell."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


class Bell:
    """One end's hold on the bell; owns the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._count = bytearray(8)

    def ring(self) -> None:
        """Wake the peer."""
        try:
            os.eventfd_write(self._fd, 1)
        except BlockingIOError:
            pass  # the counter is at its limit, so the bell is ringing already

    def drain(self) -> None:
        """Silence it."""
        try:
            os.preadv(self._fd, (self._count,), -1, os.RWF_NOWAIT)
        except BlockingIOError:
            pass  # a wake-up for another reason

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
