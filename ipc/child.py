"""Starting, watching and reaping processes: the supervisor's side.

Used by both supervisors. A child is a pidfd: it is signalled, watched and reaped by
it, never by a number that the kernel may have given to another. A child is spawned
(exec, with exactly the descriptors it was given) or adopted (a device, forked by the
zygote and reparented to us, see `become_subreaper`).

    exit code   meaning      what the parent does
    0           stopped      nothing, it was asked to
    70          restart      start it again: it could not go on
    100         permanent    leave it: the configuration must change first
    111         temporary    start it again: it met a fault and said so
    other       crash        as 111, and nobody said why
    a signal    crash        the same

Invariant: every child that is watched is reaped exactly once, by the Reaper alone.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipc.process import (
    PARENT_PID,
    become_subreaper,
    close_fds_except,
    die_with_parent,
    pass_settings,
    read_settings,
    set_title,
)

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

__all__ = [
    "EXIT_OK",
    "EXIT_PERMANENT",
    "EXIT_RESTART",
    "EXIT_TEMPORARY",
    "Child",
    "Exit",
    "OnExit",
    "Reaper",
    "adopt",
    "become_subreaper",
    "close_fds_except",
    "die_with_parent",
    "pass_settings",
    "read_settings",
    "set_title",
    "spawn",
]

EXIT_OK = 0
EXIT_RESTART = 70
EXIT_PERMANENT = 100
EXIT_TEMPORARY = 111

_MEANINGS = {
    EXIT_OK: "stopped",
    EXIT_RESTART: "restart",
    EXIT_PERMANENT: "permanent",
    EXIT_TEMPORARY: "temporary",
}
# These speak to systemd about us; a child that used them would speak in our name.
_OURS_ALONE = frozenset(
    [
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "LISTEN_PID",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
    ]
)
_RESETTABLE = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_REPARENT_POLL_S = 0.02
_REPARENT_POLLS = 50


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended; neither field is set when another parent took the status."""

    code: int | None
    signal: int | None

    @property
    def meaning(self) -> str:
        """stopped, restart, permanent, temporary or crash."""
        if self.code is None:
            return "crash"
        return _MEANINGS.get(self.code, "crash")

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by {_signal_name(self.signal)}"
        if self.code is None:
            return "exit status unknown"
        return f"exit {self.code} ({self.meaning})"


@dataclass(slots=True, eq=False)
class Child:
    """A process of ours; `pidfd` is -1 once it has been reaped."""

    name: str
    pid: int
    pidfd: int

    def kill(self, sig: int = signal.SIGKILL) -> None:
        """Signal it; nothing happens when it has ended."""
        if self.pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self.pidfd, sig)
        except ProcessLookupError:
            pass  # reaped by someone else

    @property
    def alive(self) -> bool:
        if self.pidfd < 0:
            return False
        poll = select.poll()  # not select(): numbers above 1023 are usual here
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)


def spawn(
    name: str,
    argv: Sequence[str],
    *,
    fds: Iterable[int] = (),
    env: Mapping[str, str] | None = None,
) -> Child:
    """Start `argv[0]` with 0, 1, 2 and `fds`, under the same numbers, and no other.

    `env` is its whole environment (default: ours). It is in a process group of its own,
    so that Ctrl-C reaches the supervisor alone, which then stops everyone in order.
    Raises OSError.
    """
    given = {0, 1, 2, *fds}
    pid = os.posix_spawn(
        argv[0],
        list(argv),
        _environment(os.environ if env is None else env),
        file_actions=[
            # onto itself: clears close-on-exec in the child only
            *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in given - {0, 1, 2}),
            *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable_fds() - given),
        ],
        setpgroup=0,
        setsigmask=(),
        setsigdef=_RESETTABLE,  # Python ignores SIGPIPE; nohup, SIGHUP
    )
    return Child(name, pid, os.pidfd_open(pid))


def adopt(name: str, pid: int) -> Child:
    """A process that the zygote forked for us. Raises ProcessLookupError."""
    return Child(name, pid, os.pidfd_open(pid))


OnExit = Callable[[Child, Exit], None]


class Reaper:
    """Tells the supervisor of each death, once, from its own loop."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: dict[int, tuple[Child, OnExit]] = {}
        self._zombies_seen: set[int] = set()

    def watch(self, child: Child, on_exit: OnExit) -> None:
        """Call `on_exit` when the child has ended and is reaped."""
        self._watched[child.pid] = (child, on_exit)
        self._loop.add_reader(child.pidfd, self._collect, child, _REPARENT_POLLS)

    def reap_orphans(self) -> list[int]:
        """Reap the dead that nobody watches; the pids that went.

        Called from the tick. A zombie goes at its second sight, so that a device which
        dies before it is adopted keeps its exit status for whoever adopts it.
        """
        zombies = {pid for pid in _children() if self._is_stray_zombie(pid)}
        due = zombies & self._zombies_seen
        self._zombies_seen = zombies - due
        return sorted(pid for pid in due if _reap(os.P_PID, pid) is not None)

    def close(self) -> None:
        """Watch nobody any more; the children live on."""
        for child, _ in self._watched.values():
            self._loop.remove_reader(child.pidfd)
        self._watched.clear()

    def _is_stray_zombie(self, pid: int) -> bool:
        return pid not in self._watched and _is_zombie(pid)

    def _collect(self, child: Child, polls_left: int) -> None:
        self._loop.remove_reader(child.pidfd)
        try:
            end = _reap(os.P_PIDFD, child.pidfd)
        except ChildProcessError:
            # Its parent, the zygote's intermediate, has yet to end and leave it to us.
            self._retry(child, polls_left)
            return
        if end is None:
            self._loop.add_reader(child.pidfd, self._collect, child, polls_left)
            return
        self._report(child, end)

    def _retry(self, child: Child, polls_left: int) -> None:
        if polls_left == 0:
            self._report(child, Exit(None, None))
            return
        self._loop.call_later(
            _REPARENT_POLL_S, self._collect_again, child, polls_left - 1
        )

    def _collect_again(self, child: Child, polls_left: int) -> None:
        if child.pid in self._watched:  # else closed meanwhile
            self._collect(child, polls_left)

    def _report(self, child: Child, end: Exit) -> None:
        _, on_exit = self._watched.pop(child.pid)
        os.close(child.pidfd)
        child.pidfd = -1
        on_exit(child, end)


def _reap(kind: int, number: int) -> Exit | None:
    """The end of a child, taken off the process table; None = it lives."""
    info = os.waitid(kind, number, os.WEXITED | os.WNOHANG)
    if info is None:
        return None
    if info.si_code == os.CLD_EXITED:
        return Exit(info.si_status, None)
    return Exit(None, info.si_status)


def _is_zombie(pid: int) -> bool:
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    try:
        return os.waitid(os.P_PID, pid, options) is not None
    except ChildProcessError:
        return False  # reaped since it was listed


def _children() -> list[int]:
    """Every child of this process, whichever of our threads it hangs on."""
    found: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/children") as file:
                found += map(int, file.read().split())
        except (FileNotFoundError, ProcessLookupError):
            pass  # the thread ended; its children hang on another by now
    return found


def _inheritable_fds() -> set[int]:
    """What an exec would leave open: leftovers of whoever started us."""
    found = set()
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        try:
            if os.get_inheritable(fd):
                found.add(fd)
        except OSError:
            pass  # the listing's own descriptor, closed by now
    return found


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    kept = {name: text for name, text in given.items() if name not in _OURS_ALONE}
    return {**kept, PARENT_PID: str(os.getpid())}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal between SIGRTMIN and SIGRTMAX
