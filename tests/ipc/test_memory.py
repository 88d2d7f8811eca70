"""Shared memory without a name."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal

import pytest

from ipc import memory


@pytest.mark.parametrize("sealed", [False, True])
def test_what_one_holder_writes_another_reads(sealed: bool) -> None:
    fd = memory.create(8192, sealed=sealed)
    with (
        memory.attach(os.dup(fd), minimum_bytes=8192) as one,
        memory.attach(fd, minimum_bytes=8192) as other,
    ):
        assert other[:] == bytes(8192)
        one[5000:5005] = b"hello"
        assert other[5000:5005] == b"hello"


@pytest.mark.parametrize("sealed", [False, True])
def test_a_segment_has_no_name_and_no_child_inherits_it(sealed: bool) -> None:
    before = set(os.listdir("/dev/shm"))
    fd = memory.create(4096, sealed=sealed)
    assert set(os.listdir("/dev/shm")) <= before
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.parametrize("sealed", [False, True])
def test_every_page_is_allocated_before_the_first_touch(sealed: bool) -> None:
    fd = memory.create(1 << 20, sealed=sealed)
    assert os.fstat(fd).st_blocks * 512 >= 1 << 20
    os.close(fd)


def test_a_sealed_segment_keeps_its_size_whatever_a_peer_does() -> None:
    fd = memory.create(8192, sealed=True)
    for size_bytes in (0, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size_bytes)
    os.close(fd)


@pytest.mark.parametrize("sealed", [False, True])
def test_memory_that_is_not_there_is_an_error_at_creation(sealed: bool) -> None:
    pid = os.fork()
    if pid == 0:
        # The limit stands for a full /dev/shm: both fail the allocation, no mapping.
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        before = len(os.listdir("/proc/self/fd"))
        verdict = 99
        try:
            memory.create(1 << 20, sealed=sealed)
        except OSError as error:
            leaked = len(os.listdir("/proc/self/fd")) - before
            verdict = leaked if error.errno in (errno.EFBIG, errno.ENOSPC) else 98
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        os._exit(verdict)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_attach_closes_the_descriptor_and_maps_all() -> None:
    fd = memory.create(12288, sealed=False)
    segment = memory.attach(fd, minimum_bytes=4096)
    assert len(segment) == 12288
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    segment.close()


def test_a_segment_that_is_too_small_is_refused_and_closed() -> None:
    fd = memory.create(4096, sealed=False)
    with pytest.raises(memory.BadSegment, match="4096 bytes, expected 8192"):
        memory.attach(fd, minimum_bytes=8192)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_something_that_is_no_memory_is_refused() -> None:
    read_end, write_end = os.pipe()
    os.close(write_end)
    with pytest.raises(memory.BadSegment):
        memory.attach(read_end, minimum_bytes=0)


def test_memory_outlives_the_process_that_made_it() -> None:
    fd = memory.create(4096, sealed=False)
    pid = os.fork()
    if pid == 0:
        segment = memory.attach(os.dup(fd), minimum_bytes=4096)
        segment[:4] = b"left"
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    with mmap.mmap(fd, 4096) as segment:
        assert segment[:4] == b"left"
    os.close(fd)
