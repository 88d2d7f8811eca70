"""What a process does to itself: die with its parent, adopt orphans, shed descriptors.

Called in the process concerned, before it starts a thread or a loop. The parent-death
signal is bound to the parent's thread, is lost at fork (not at exec), and is never sent
for a parent that died before it was asked for. So it is asked for first and the parent
is looked at afterwards; whichever came first, the process doesn't outlive its parent.

    settings fd:  sealed memfd, one msgpack map, read once from the start

Invariant: nothing here allocates, waits or talks; each call is one or two system calls.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import setproctitle

PARENT_PID = "CORTEX_PARENT_PID"
"""Environment variable that tells a spawned process who must be its parent."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SEALS = (
    fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
)
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent(
    parent_pid: int | None = None, sig: signal.Signals = signal.SIGKILL
) -> None:
    """Get `sig` when the parent dies, or at once when it is dead already.

    Without `parent_pid` the parent is the one that `spawn` noted in the environment,
    where the note is removed so that a child of ours can't take it for its own; without
    a note (started by hand) it is whoever the parent is now.
    """
    noted = os.environ.pop(PARENT_PID, "")
    parent = parent_pid or int(noted or os.getppid())
    _prctl(_PR_SET_PDEATHSIG, sig)
    if os.getppid() != parent:
        os.kill(os.getpid(), sig)


def become_subreaper() -> None:
    """Children of our dead children become ours instead of init's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def be_first_to_go() -> None:
    """When memory runs out, the kernel shall end what can be started again."""
    try:
        Path("/proc/self/oom_score_adj").write_text("500")
    except OSError:
        pass  # a sandbox without /proc; then the kernel chooses by size


def close_fds_except(keep: Iterable[int]) -> None:
    """Close every descriptor but 0, 1, 2 and `keep`.

    For a freshly forked process. Objects that still hold a closed number must never be
    used or collected afterwards; a fork that calls this ends by `os._exit`.
    """
    kept = {0, 1, 2, *keep}
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd not in kept:
            _close_if_open(fd)


def pass_settings(settings: Mapping[str, Any]) -> int:
    """A descriptor to hand to a child: the settings, readable and not changeable."""
    packed = msgpack.packb(dict(settings))
    fd = os.memfd_create("settings", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(packed)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def read_settings(fd: int) -> dict[str, Any]:
    """Inverse of `pass_settings`; closes `fd`. Raises ValueError."""
    try:
        packed = os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
    settings = msgpack.unpackb(packed)
    if not isinstance(settings, dict):
        raise ValueError(f"the settings are a {type(settings).__name__}, not a map")
    return settings


def set_title(text: str) -> None:
    """What `ps` and `top` show."""
    setproctitle.setproctitle(text)


def _close_if_open(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass  # the listing's own descriptor is in the listing


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
