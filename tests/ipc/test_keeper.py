"""The keeper with real children."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from ipc.child import Child, Exit, Reaper, spawn
from ipc.keeper import Keeper, pause_s

Ends = list[str]
STUBBORN = "trap '' TERM; while :; do sleep 0.05; done"


class Nursery:
    """A keeper of a shell command that can be changed."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.fail = False
        self.ends: Ends = []
        self.reaper = Reaper(asyncio.get_running_loop())
        self.keeper = Keeper("child", self.launch, self.reaper, self.heard)

    def launch(self) -> Child:
        if self.fail:
            raise OSError("no more processes")
        return spawn("child", ["/bin/sh", "-c", self.command])

    def heard(self, _keeper: Keeper, end: Exit | OSError) -> None:
        self.ends.append(str(end))

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.sleep(0.005)


def nursed(command: str, work: Callable[[Nursery], Awaitable[None]]) -> None:
    async def run() -> None:
        nursery = Nursery(command)
        async with asyncio.timeout(20):
            await work(nursery)
            nursery.keeper.stop(signal.SIGKILL)
            await nursery.keeper.gone.wait()
        nursery.reaper.close()

    uvloop.run(run())


def test_a_child_that_dies_is_replaced() -> None:
    async def work(nursery: Nursery) -> None:
        keeper = nursery.keeper
        keeper.start()
        first = keeper.pid
        assert first is not None
        assert keeper._child is not None
        keeper._child.kill()
        await nursery.until(lambda: keeper.pid not in (None, first))
        assert keeper.state == "running"
        assert nursery.ends == ["killed by SIGKILL"]

    nursed("exec sleep 60", work)


def test_a_child_that_answers_nothing_is_replaced() -> None:
    async def work(nursery: Nursery) -> None:
        nursery.keeper.replace()  # none is there: nothing happens
        nursery.keeper.start()
        first = nursery.keeper.pid
        nursery.keeper.replace()
        await nursery.until(lambda: nursery.keeper.pid not in (None, first))
        assert nursery.ends == ["killed by SIGKILL"]

    nursed(STUBBORN, work)


def test_a_child_that_dies_young_again_and_again_is_given_pauses() -> None:
    async def work(nursery: Nursery) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        nursery.keeper.start()
        await nursery.until(lambda: len(nursery.ends) == 3)
        assert nursery.keeper.state == "pausing"
        assert nursery.keeper.pid is None
        assert loop.time() - began_s >= pause_s(1) + pause_s(2)
        assert nursery.ends[0] == "exit 7 (crash)"

    nursed("exit 7", work)


def test_a_child_that_cannot_be_started_is_tried_again() -> None:
    async def work(nursery: Nursery) -> None:
        nursery.fail = True
        nursery.keeper.start()
        assert nursery.ends == ["no more processes"]
        assert nursery.keeper.state == "pausing"
        nursery.fail = False
        await nursery.until(lambda: nursery.keeper.state == "running")

    nursed("exec sleep 60", work)


def test_a_child_that_is_stopped_stays_so() -> None:
    async def work(nursery: Nursery) -> None:
        nursery.keeper.start()
        nursery.keeper.stop()
        await nursery.keeper.gone.wait()
        assert nursery.keeper.state == "stopped"
        assert nursery.ends == ["killed by SIGTERM"]

    nursed("exec sleep 60", work)


def test_a_child_that_will_not_stop_can_be_pressed() -> None:
    async def work(nursery: Nursery) -> None:
        nursery.keeper.start()
        nursery.keeper.stop()
        nursery.keeper.stop(signal.SIGKILL)
        await nursery.keeper.gone.wait()
        assert nursery.ends[0].startswith("killed by SIG")

    nursed(STUBBORN, work)


def test_a_stop_during_a_pause_is_at_once() -> None:
    async def work(nursery: Nursery) -> None:
        nursery.keeper.start()
        await nursery.until(lambda: nursery.keeper.state == "pausing")
        nursery.keeper.stop()
        assert nursery.keeper.gone.is_set()
        assert nursery.keeper.state == "stopped"

    nursed("exit 1", work)


@pytest.mark.parametrize(
    ("short_lives", "pause"),
    [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.4), (6, 3.2), (7, 5.0), (10_000, 5.0)],
)
def test_pauses_double_up_to_a_bound(short_lives: int, pause: float) -> None:
    assert pause_s(short_lives) == pytest.approx(pause)
