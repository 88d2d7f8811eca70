"""Children: what they are given, how their end is judged, that none is left over."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable

import pytest

from ipc.child import Child, Exit, Reaper, adopt, become_subreaper, spawn
from tests.ipc.processkit import (
    finish,
    fork,
    in_fork,
    open_fds,
    run,
    until,
    wait_for,
    zombies,
)

_NAMED = {0: "stopped", 70: "restart", 100: "permanent", 111: "temporary"}
_HARMLESS = {"SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH"}
_STOPPING = {"SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU"}
_DEADLY = [s for s in signal.Signals if s.name not in _HARMLESS | _STOPPING]


def _shell(script: str, *, fds: Iterable[int] = ()) -> Child:
    return spawn("shell", ["/bin/sh", "-c", f"ulimit -c 0; {script}"], fds=fds)


async def _ends(children: list[Child]) -> list[Exit]:
    """How they ended, in their order."""
    reaper = Reaper(asyncio.get_running_loop())
    ends: dict[int, Exit] = {}
    for child in children:
        reaper.watch(child, lambda child, end: ends.update({child.pid: end}))
    await until(lambda: len(ends) == len(children), "every child's end")
    reaper.close()
    return [ends[child.pid] for child in children]


def _end(child: Child) -> Exit:
    return run(_ends([child]))[0]


# -- verdicts


def test_every_exit_code_gets_its_verdict() -> None:
    ends: list[Exit] = []
    for first in range(0, 256, 32):
        codes = range(first, first + 32)
        ends += run(_ends([_shell(f"exit {code}") for code in codes]))
    assert [end.code for end in ends] == list(range(256))
    assert [end.signal for end in ends] == [None] * 256
    expected = [_NAMED.get(code, "crash") for code in range(256)]
    assert [end.meaning for end in ends] == expected


def test_every_deadly_signal_is_a_crash_and_named() -> None:
    ends = run(_ends([_shell(f"kill -{sig.value} $$; sleep 9") for sig in _DEADLY]))
    assert [end.signal for end in ends] == [sig.value for sig in _DEADLY]
    assert {end.meaning for end in ends} == {"crash"}
    assert [str(end) for end in ends] == [f"killed by {sig.name}" for sig in _DEADLY]


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (Exit(0, None), "exit 0 (stopped)"),
        (Exit(111, None), "exit 111 (temporary)"),
        (Exit(3, None), "exit 3 (crash)"),
        (Exit(None, 40), "killed by signal 40"),
        (Exit(None, None), "exit status unknown"),
    ],
)
def test_an_end_reads_as_a_journal_would_say_it(end: Exit, text: str) -> None:
    assert str(end) == text


def test_an_end_that_nobody_knows_counts_as_a_crash() -> None:
    assert Exit(None, None).meaning == "crash"


# -- what a child is given


def _said(argv: list[str], fds: Iterable[int] = ()) -> str:
    """What a spawned program writes to the descriptor whose number ends its argv."""
    told, tell = os.pipe()
    child = spawn("speaker", [*argv, str(tell)], fds=(*fds, tell))
    os.close(tell)
    with open(told) as file:
        text = file.read()
    assert _end(child).meaning == "stopped"
    return text


_LIST_FDS = """
import os, sys
os.write(int(sys.argv[1]), " ".join(os.listdir("/proc/self/fd")).encode())
"""


def test_a_child_has_exactly_the_descriptors_it_was_given() -> None:
    leftover = os.dup(0)
    os.set_inheritable(leftover, True)  # as whoever started us may leave them
    given = os.open("/dev/null", os.O_RDONLY)

    said = _said([sys.executable, "-c", _LIST_FDS], [given])

    seen = set(map(int, said.split()))
    os.close(leftover)
    os.close(given)
    assert given in seen
    assert leftover not in seen
    assert len(seen) == 3 + 2 + 1  # standard ones, given and pipe, the listing itself


def test_descriptors_stay_close_on_exec_on_our_side() -> None:
    given = os.open("/dev/null", os.O_RDONLY)
    assert _end(_shell(f"test -e /proc/self/fd/{given}", fds=[given])).code == 0
    assert not os.get_inheritable(given)
    os.close(given)


def test_a_child_is_told_who_its_parent_is() -> None:
    assert _end(_shell(f'test "$CORTEX_PARENT_PID" = {os.getpid()}')).code == 0


def test_a_child_does_not_speak_to_systemd_for_us(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/nobody")
    monkeypatch.setenv("LISTEN_FDS", "1")
    script = 'test -z "$NOTIFY_SOCKET$LISTEN_FDS" && test -n "$PATH"'
    assert _end(_shell(script)).code == 0


def test_an_environment_that_is_given_is_the_whole_of_it() -> None:
    argv = ["/bin/sh", "-c", 'test "$A" = 1 && test -z "$HOME"']
    assert _end(spawn("shell", argv, env={"A": "1"})).code == 0


def test_ctrl_c_at_a_terminal_does_not_reach_a_child_directly() -> None:
    child = _shell("exec sleep 60")
    assert os.getpgid(child.pid) == child.pid != os.getpgid(0)
    child.kill()
    assert _end(child).signal == signal.SIGKILL


def test_signals_that_we_block_are_open_in_a_child() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        child = _shell("kill -USR1 $$; exit 3")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    assert _end(child).signal == signal.SIGUSR1


def test_a_program_that_is_not_there_is_an_error_at_once() -> None:
    with pytest.raises(FileNotFoundError):
        spawn("nothing", ["/nowhere/program"])


# -- watching and reaping


def test_a_child_is_alive_until_it_is_killed() -> None:
    child = _shell("exec sleep 60")
    assert child.alive
    child.kill(signal.SIGTERM)
    assert _end(child) == Exit(None, signal.SIGTERM)
    assert not child.alive


def test_a_dead_child_is_not_alive_before_it_is_reaped() -> None:
    child = _shell("exit 0")
    wait_for(lambda: not child.alive, "the child's end")
    child.kill()  # a zombie takes signals
    assert _end(child).code == 0
    child.kill()  # and a reaped one has no number that could be someone else's
    assert child.pidfd == -1


def test_a_child_that_someone_else_reaped_can_still_be_killed_in_vain() -> None:
    child = _shell("exit 0")
    os.waitpid(child.pid, 0)
    child.kill()
    os.close(child.pidfd)


def test_a_hundred_lives_leave_no_zombie_and_no_descriptor() -> None:
    before = open_fds()
    for _ in range(5):
        run(_ends([_shell("exit 111") for _ in range(20)]))
    assert zombies() == []
    assert open_fds() == before


def test_a_reaper_that_is_closed_reports_nothing() -> None:
    async def work() -> None:
        reaper = Reaper(asyncio.get_running_loop())
        child = _shell("exit 0")
        reaper.watch(child, lambda *_: pytest.fail("reported"))
        reaper.close()
        wait_for(lambda: not child.alive)
        await asyncio.sleep(0)
        assert os.waitpid(child.pid, 0)[1] == 0, "it is left to whoever comes next"
        os.close(child.pidfd)

    run(work())


# -- adoption


def _orphan(work: Callable[[], None], release: int | None = None) -> int:
    """The pid of a grandchild; its parent ends when `release` reads EOF, or at once."""
    told, tell = os.pipe()

    def middle() -> None:
        os.write(tell, b"%d" % fork(work))
        if release is not None:
            os.read(release, 1)

    middle_pid = fork(middle)
    os.close(tell)
    pid = int(os.read(told, 20))
    os.close(told)
    if release is None:
        os.waitpid(middle_pid, 0)
    return pid


def _as_supervisor(work: Callable[[Reaper], object]) -> object:
    """Run a coroutine function in a fork that is a subreaper."""

    async def main() -> object:
        reaper = Reaper(asyncio.get_running_loop())
        return await work(reaper)  # type: ignore[misc]

    def child() -> object:
        become_subreaper()
        return run(main())

    return in_fork(child)


async def _adopted_end(reaper: Reaper, pid: int) -> str:
    end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    reaper.watch(adopt("device", pid), lambda _, how: end.set_result(how))
    return str(await end)


def test_an_adopted_grandchild_is_reaped_with_its_exit_code() -> None:
    async def work(reaper: Reaper) -> list[object]:
        pid = _orphan(lambda: os._exit(111))
        return [await _adopted_end(reaper, pid), zombies()]

    assert _as_supervisor(work) == ["exit 111 (temporary)", []]


def test_a_grandchild_that_dies_before_it_is_left_to_us_keeps_its_exit_code() -> None:
    async def work(reaper: Reaper) -> list[object]:
        release, hold = os.pipe()
        os.set_blocking(hold, True)
        pid = _orphan_held(release, hold)
        loop = asyncio.get_running_loop()
        loop.call_later(0.1, os.close, hold)
        said = await _adopted_end(reaper, pid)
        os.wait()
        return [said, zombies()]

    assert _as_supervisor(work) == ["exit 111 (temporary)", []]


def _orphan_held(release: int, hold: int) -> int:
    """A dead grandchild whose parent lives until `hold` is closed."""
    told, tell = os.pipe()

    def middle() -> None:
        os.close(hold)
        os.write(tell, b"%d" % fork(lambda: os._exit(111)))
        os.read(release, 1)

    fork(middle)
    os.close(tell)
    pid = int(os.read(told, 20))
    os.close(told)
    os.close(release)
    return pid


def test_a_process_that_never_becomes_ours_ends_with_an_unknown_status() -> None:
    async def work(reaper: Reaper) -> list[object]:
        release, hold = os.pipe()
        pid = _orphan_held(release, hold)
        began_s = time.monotonic()
        said = await _adopted_end(reaper, pid)
        os.close(hold)
        return [said, time.monotonic() - began_s < 5]

    assert _as_supervisor(work) == ["exit status unknown", True]


def test_orphans_that_nobody_adopts_are_reaped_at_their_second_sight() -> None:
    async def work(reaper: Reaper) -> list[object]:
        pids = sorted([_orphan(lambda: None) for _ in range(3)])
        await until(lambda: len(zombies()) == 3)
        first = reaper.reap_orphans()
        return [first, reaper.reap_orphans() == pids, reaper.reap_orphans(), zombies()]

    assert _as_supervisor(work) == [[], True, [], []]


def test_reaping_orphans_takes_neither_the_living_nor_the_watched() -> None:
    async def work(reaper: Reaper) -> list[object]:
        living = _orphan(signal.pause)
        watched = _orphan(lambda: os._exit(70))
        end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        reaper.watch(adopt("device", watched), lambda _, how: end.set_result(how))
        wait_for(lambda: watched in zombies())
        swept = [reaper.reap_orphans(), reaper.reap_orphans(), reaper.reap_orphans()]
        said = str(await end)
        finish(living)
        return [swept, said]

    assert _as_supervisor(work) == [[[], [], []], "exit 70 (restart)"]


def test_a_process_that_is_gone_cannot_be_adopted() -> None:
    pid = fork(lambda: None)
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        adopt("device", pid)
