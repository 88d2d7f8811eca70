"""Real processes for tests: forked functions, conditions with a deadline, a loop."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import time
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

import msgpack
import uvloop

PATIENCE_S = 10.0
_LIFE_S = 30
T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str = "the condition") -> T:
    """Poll until it is true."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"{what} did not come true in {PATIENCE_S} s")
        time.sleep(0.002)
    return value


async def until(condition: Callable[[], T], what: str = "the condition") -> T:
    """As `wait_for`, while the loop turns."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"{what} did not come true in {PATIENCE_S} s")
        await asyncio.sleep(0.002)
    return value


def run(work: Coroutine[Any, Any, T]) -> T:
    """On the loop that supervisors use."""

    async def limited() -> T:
        async with asyncio.timeout(PATIENCE_S):
            return await work

    answer: T = uvloop.run(limited())
    return answer


run(asyncio.sleep(0))
"""The first loop opens a pipe for the life of the process; no test shall count it."""


def fork(work: Callable[[], object]) -> int:
    """The pid of a process that does this and exits 0, or 99 after a traceback."""
    pid = os.fork()
    if pid == 0:
        _be(work)
    return pid


def _be(work: Callable[[], object]) -> NoReturn:
    signal.alarm(_LIFE_S)  # whatever goes wrong, it outlives no test run
    code = 99
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def in_fork(work: Callable[[], Any]) -> Any:
    """What it returns (plain data) in a process of its own, which then is gone."""
    reader, writer = os.pipe()

    def tell() -> None:
        os.close(reader)
        os.write(writer, msgpack.packb(work()))

    pid = fork(tell)
    os.close(writer)
    try:
        assert select.select([reader], [], [], PATIENCE_S)[0], "the fork said nothing"
        packed = os.read(reader, 1 << 16)
    finally:
        os.close(reader)
        os.waitpid(pid, 0)  # it ends by itself, at the latest by its alarm
    assert packed, "the fork failed; its traceback is in the output"
    return msgpack.unpackb(packed)


def finish(pid: int) -> None:
    """SIGKILL and reap."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def is_gone(pidfd: int) -> bool:
    """The process has ended, reaped or not."""
    return bool(select.select([pidfd], [], [], 0)[0])


def open_fds() -> set[str]:
    """The open descriptors, as numbers with what they are."""
    gc.collect()  # what an earlier test dropped closes now or later
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            pass  # the listing itself
    return found


def zombies() -> list[int]:
    """Children of this process that ended and were not reaped."""
    found = []
    with open("/proc/thread-self/children") as file:
        children = file.read().split()
    for pid in children:
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":
                found.append(int(pid))
    return found
