"""What a process does to itself, seen from outside with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ipc import process
from tests.ipc.processkit import finish, fork, in_fork, is_gone, open_fds, wait_for


def _family(child: Callable[[int, int], None]) -> tuple[int, int, int]:
    """A parent that only waits, its child's pidfd, and a pipe the child can write to.

    The child is called with the parent's pid and the pipe.
    """
    told, tell = os.pipe()

    def parent() -> None:
        me = os.getpid()
        fork(lambda: child(me, tell))
        signal.pause()

    pid = fork(parent)
    os.close(tell)
    pidfd = os.pidfd_open(int(os.read(told, 20)))
    return pid, pidfd, told


def test_a_child_is_gone_when_its_parent_is_killed() -> None:
    def child(parent: int, tell: int) -> None:
        process.die_with_parent(parent)
        os.write(tell, b"%d" % os.getpid())
        signal.pause()

    parent, pidfd, told = _family(child)
    assert not is_gone(pidfd)
    finish(parent)
    wait_for(lambda: is_gone(pidfd), "the child's end")
    os.close(pidfd)
    os.close(told)


def test_a_child_whose_parent_died_before_it_asked_dies_at_once() -> None:
    def child(parent: int, tell: int) -> None:
        os.write(tell, b"%d" % os.getpid())
        wait_for(lambda: os.getppid() != parent)
        process.die_with_parent(parent)
        os.write(tell, b"survived")

    parent, pidfd, told = _family(child)
    finish(parent)
    wait_for(lambda: is_gone(pidfd), "the child's end")
    assert os.read(told, 20) == b""
    os.close(pidfd)
    os.close(told)


def test_a_spawned_child_of_a_dead_parent_is_killed_by_its_first_act() -> None:
    gone = fork(lambda: None)
    os.waitpid(gone, 0)

    code = "from ipc.process import die_with_parent as d; d(); print('survived')"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, process.PARENT_PID: str(gone)},
        capture_output=True,
        timeout=20,
    )

    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, b"")


def test_the_note_about_the_parent_is_taken_out_of_the_environment() -> None:
    def child() -> bool:
        os.environ[process.PARENT_PID] = str(os.getppid())
        process.die_with_parent()
        process.die_with_parent()  # without a note: whoever the parent is
        return process.PARENT_PID in os.environ

    assert in_fork(child) is False


def test_the_signal_of_the_parents_death_can_be_a_gentle_one() -> None:
    def child(parent: int, tell: int) -> None:
        def stop(*_: object) -> None:
            os.write(tell, b"told to stop")
            os._exit(0)

        signal.signal(signal.SIGTERM, stop)
        process.die_with_parent(parent, signal.SIGTERM)
        os.write(tell, b"%d" % os.getpid())
        signal.pause()

    parent, pidfd, told = _family(child)
    finish(parent)
    wait_for(lambda: is_gone(pidfd), "the child's end")
    assert os.read(told, 20) == b"told to stop"
    os.close(pidfd)
    os.close(told)


def test_a_subreaper_becomes_the_parent_of_its_orphans() -> None:
    def supervisor() -> bool:
        process.become_subreaper()
        told, tell = os.pipe()
        middle = fork(lambda: os.write(tell, b"%d" % fork(signal.pause)))
        os.waitpid(middle, 0)
        orphan = int(os.read(told, 20))
        finish(orphan)  # raises when it is not our child
        return True

    assert in_fork(supervisor) is True


def test_every_descriptor_but_the_kept_ones_is_closed() -> None:
    def child() -> list[list[int]]:
        given = os.open("/dev/null", os.O_RDONLY)
        for _ in range(20):
            os.dup(given)
        far = os.dup2(given, 900)
        process.close_fds_except([*report, given, 5000])
        kept = {0, 1, 2, *report, given}
        left = {int(entry.split()[0]) for entry in open_fds()}
        return [sorted(left), sorted(kept & left), [far]]

    before = {int(entry.split()[0]) for entry in open_fds()}
    # in_fork's own pipe comes next; it has to survive for the answer
    report = sorted(set(range(3, max(before) + 8)) - before)[:2]
    left, expected, _ = in_fork(child)
    assert left == expected


def test_settings_arrive_as_they_were_given() -> None:
    settings = {"listen": "0.0.0.0:1", "count": 2, "nested": {"a": [1, 2.5, None, "ü"]}}
    fd = process.pass_settings(settings)
    assert process.read_settings(os.dup(fd)) == settings
    assert process.read_settings(fd) == settings, "reading takes nothing away"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_settings_of_any_size_arrive_whole() -> None:
    settings = {"text": "x" * 3_000_000}
    assert process.read_settings(process.pass_settings(settings)) == settings


def test_settings_cannot_be_changed_by_who_reads_them() -> None:
    fd = process.pass_settings({"a": 1})
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


@pytest.mark.parametrize("content", [b"", b"\x93\x01\x02\x03", b"\x81\xa1a", b"\xc1"])
def test_settings_that_are_no_map_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "settings").write_bytes(content)
    fd = os.open(tmp_path / "settings", os.O_RDONLY)
    with pytest.raises(ValueError):
        process.read_settings(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_title_is_what_the_process_list_shows() -> None:
    def child() -> str:
        process.set_title("neurond: device cpu-0")
        return Path("/proc/self/cmdline").read_text().rstrip("\0 ")

    assert in_fork(child) == "neurond: device cpu-0"


def test_an_option_that_the_kernel_refuses_is_an_error() -> None:
    with pytest.raises(OSError, match="prctl"):
        process._prctl(1, 4096)  # no such signal
