"""A node, its devices, workers and clients in one process, on one seed.

    plan ─▶ node ── rings ── workers ── clients
              └─ processes ─┘     mishaps on all of them
    judge: safety at every step;  `run`: everybody ends, and the node serves on

Whatever is drawn comes from the seed, whatever waits does so on the simulated loop, so
a seed is always the same story.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, cast

from ipc.journal import Journal
from neurond.states import ModelStatus
from tests.simulation.client import Client
from tests.simulation.clock import START_S, SimulatedLoop, Stuck
from tests.simulation.device import Child
from tests.simulation.judge import Judge
from tests.simulation.mishaps import Mishaps
from tests.simulation.node import Node
from tests.simulation.plan import FAULTY_S, Plan, Wish, plan_of
from tests.simulation.rings import Pair
from tests.simulation.worker import FrontEnd

_LONGEST_S = 200.0
_SETTLE_S = 90.0
_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Story:
    """How it went."""

    seed: int
    violations: list[str]
    outcomes: list[str]
    num_deaths: int
    num_resumed: int
    num_convicted: int
    trace: list[str]


class _NoJournal:
    """Says nothing."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args, **_fields: None


class World:
    def __init__(self, seed: int, *, is_traced: bool = False) -> None:
        self.chance = Random(seed)
        self.plan: Plan = plan_of(self.chance)
        self.loop = SimulatedLoop()
        self.loop.set_exception_handler(self._on_exception)
        asyncio.set_event_loop(self.loop)
        self.clock = self.loop.time
        self.journal = cast(Journal, _NoJournal())
        self.pairs: dict[int, Pair] = {}
        self.num_oom_kills = 0
        self.dead_workers: dict[int, float] = {}
        self.lines: list[str] = []
        self._is_traced = is_traced
        self._pids = itertools.count(1000)
        self._leases = itertools.count(1)
        self._numbers = itertools.count(1)
        self.next_pid: Callable[[], int] = lambda: next(self._pids)
        self.next_lease: Callable[[], int] = lambda: next(self._leases)
        self.workers: list[FrontEnd] = []
        self.clients: list[Client] = []
        self.judge = Judge(self)
        self._tasks: dict[Client, asyncio.Task[None]] = {}

    def trace(self, who: str, text: str) -> None:
        if self._is_traced:
            self.lines.append(f"{self.clock() - START_S:9.4f}  {who:12} {text}")

    # ---- what processes ask

    def child(self, device: str) -> Child | None:
        process = self.node.process(device)
        return process.child if process is not None else None

    def boot_s(self, child: Child) -> float:
        return self.mishaps.boot_s(child)

    def fails_fork(self, device: str) -> bool:
        if not self.mishaps.forks[device]:
            return False
        self.mishaps.forks[device] -= 1
        return True

    def load_fault(self, device: str) -> str:
        return self.mishaps.loads.pop(device, "")

    def replace_worker(self, index: int) -> None:
        """It dies, and with it the connections of its clients."""
        worker = self.workers[index]
        self.trace("worker", f"{worker.number} dies")
        self.dead_workers[worker.number] = self.clock()
        worker.die()
        for client, task in self._tasks.items():
            if client.worker is worker and not client.outcome:
                task.cancel()
        self.workers[index] = FrontEnd(self, next(self._numbers))
        self.loop.call_later(0.05, self.workers[index].hear, self.node.facts())

    # ---- the story

    def run(self) -> None:
        try:
            self.loop.run_until_complete(self._all())
        except Stuck:
            self.judge.violate("nothing is left that could happen")
        finally:
            self._end()

    async def _all(self) -> None:
        self.node = Node(self)
        self.mishaps = Mishaps(self)
        self.node.start()
        for _ in range(self.plan.num_workers):
            self.workers.append(FrontEnd(self, next(self._numbers)))
        for wish in self.plan.wishes:
            self._ask(wish)
        await self._within(_LONGEST_S, self._all_ended, "clients wait for ever")
        await asyncio.sleep(max(0.0, START_S + FAULTY_S + 1.5 - self.clock()))
        await self._within(_SETTLE_S, self._is_quiet, "the node doesn't settle")
        await self._ask_once_more()

    def _ask(self, wish: Wish) -> Client:
        client = Client(self, wish)
        self.clients.append(client)
        self.judge.know(client)
        self._tasks[client] = self.loop.create_task(client.run())
        return client

    async def _within(
        self, seconds: float, is_true: Callable[[], Any], text: str
    ) -> None:
        until_s = self.clock() + seconds
        while not is_true():
            if self.clock() > until_s:
                self.judge.violate(f"{text}: {self._standing()}")
                return
            await asyncio.sleep(_POLL_S)

    async def _ask_once_more(self) -> None:
        """Whoever comes now is served, by every model that has a device."""
        records = self.node.lifecycle.records.values()
        for record in records:
            slots = [self.node.slot(name) for name in record.devices]
            if record.status is not ModelStatus.LOADED or not slots:
                continue
            number = len(self.plan.wishes) + len(self.clients)
            wish = Wish(
                number, 0.0, record.spec.id, 3, 5, 1, (), True, "", 0, 0, 0, 0.0, 0
            )
            client = self._ask(wish)
            await self._within(40.0, client.has_ended, "nobody is served")

    def _all_ended(self) -> bool:
        return all(client.has_ended() for client in self.clients)

    def _is_quiet(self) -> bool:
        """Devices are up or out, and nobody holds anything."""
        children = [self.child(name) for name in self.plan.devices]
        is_idle = not any(c.backend.present for c in children if c is not None)
        is_idle = is_idle and not any(len(w.table) for w in self.workers)
        return is_idle and self.node.is_settled

    def _standing(self) -> str:
        waiting = [c.who for c in self.clients if not c.outcome]
        states = [f"{s.name} {s.state}" for s in self.node.slots]
        held = {name: sorted(self.judge.running(name)) for name in self.plan.devices}
        tables = [len(worker.table) for worker in self.workers]
        return f"{waiting} {states} held {held} tables {tables}"

    def _on_exception(self, _loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        told = repr(error) if error is not None else context["message"]
        where = _where(error) if error is not None else ""
        self.judge.violate(f"an exception nobody expected: {told} {where}")

    def _end(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.close()
        asyncio.set_event_loop(None)


def _where(error: BaseException) -> str:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None:
        return ""
    return f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"


def play(seed: int, *, is_traced: bool = False) -> Story:
    """The whole story of a seed."""
    world = World(seed, is_traced=is_traced)
    world.run()
    judge = world.judge
    return Story(
        seed,
        judge.violations,
        [client.outcome for client in world.clients],
        len(judge.deaths),
        judge.num_resumed,
        judge.num_convicted,
        world.lines,
    )
