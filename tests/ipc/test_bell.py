"""The doorbell: never lost, never blocking, whatever the other holder does."""

from __future__ import annotations

import fcntl
import os
import select
from collections.abc import Iterator

import pytest

from ipc.bell import Bell, create_bell


@pytest.fixture
def ends() -> Iterator[tuple[Bell, Bell]]:
    fd = create_bell()
    one, other = Bell(os.dup(fd)), Bell(fd)
    yield one, other
    one.close()
    other.close()


def _rings(bell: Bell) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


def test_a_ring_wakes_the_other_end_until_it_drains(ends: tuple[Bell, Bell]) -> None:
    one, other = ends
    assert not _rings(other)
    one.ring()
    one.ring()
    assert _rings(other)
    other.drain()
    assert not _rings(other)


def test_draining_a_silent_bell_returns_at_once(ends: tuple[Bell, Bell]) -> None:
    ends[0].drain()
    assert not _rings(ends[0])


def test_a_peer_that_makes_the_bell_blocking_cannot_hang_us() -> None:
    fd = create_bell()
    pid = os.fork()
    if pid == 0:
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        Bell(fd).drain()
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    ended = select.select([pidfd], [], [], 5)[0]
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    os.close(pidfd)
    os.close(fd)
    assert ended


def test_a_bell_at_its_limit_still_rings() -> None:
    fd = create_bell()
    os.eventfd_write(fd, 2**64 - 2)
    bell = Bell(fd)
    bell.ring()
    assert _rings(bell)
    bell.close()


def test_a_bell_is_closed_once_and_not_inherited() -> None:
    fd = create_bell()
    assert not os.get_inheritable(fd)
    bell = Bell(fd)
    assert bell.fileno() == fd
    bell.close()
    bell.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
