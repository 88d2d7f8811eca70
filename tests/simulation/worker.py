"""A front-end worker: the real table, devices and resumption, told of by messages."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from ipc.attachwire import Quarantine
from ipc.channel import WorkerEnd
from ipc.messages import Submit
from neurond.frontend.node import Node
from neurond.frontend.resumption import TICK_S, Resumption
from neurond.serving.devices import Devices
from neurond.serving.fingerprint import fingerprint
from neurond.serving.requests import RequestTable
from tests.simulation.rings import WorkerSide, pair_of

if TYPE_CHECKING:
    from tests.simulation.world import World

RESUME_DEADLINE_S = 20.0


class Lease:
    """A connection to attach.sock, as `WorkerLink`: everything comes late, in order."""

    def __init__(self, worker: FrontEnd, number: int) -> None:
        self.id = number
        self.peer = SimpleNamespace(uid=os.geteuid())
        self.is_open = True
        self._worker = worker
        self._last_s = 0.0

    def send_pair(self, device: str, generation: int, pair: Any, _sealed: bool) -> None:
        self._later(lambda: self._worker.devices.on_pair(device, generation, pair))

    def send_down(
        self,
        device: str,
        generation: int,
        reason: str,
        suspects: tuple[tuple[int, int], ...] = (),
        convicted: tuple[int, ...] = (),
    ) -> None:
        told = (device, generation, reason, suspects, convicted)
        self._worker.world.judge.charged(device, (*suspects, *convicted))
        self._later(lambda: self._worker.devices.on_down(*told))

    def _later(self, act: Callable[[], None]) -> None:
        world = self._worker.world
        at_s = world.clock() + world.chance.uniform(0.0, 0.01)
        self._last_s = max(self._last_s, at_s)
        world.loop.call_at(self._last_s, lambda: act() if self.is_open else None)


class FrontEnd:
    """`facts` and `model` as of `Node`."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.is_alive = True
        self.facts: dict[str, Any] = {}
        self.lease: Lease | None = None
        self.table = RequestTable(
            first_id=number * 1000 + 1,
            max_entries=64,
            resume_deadline_s=RESUME_DEADLINE_S,
            clock=world.clock,
            on_resumed=world.judge.resumed,
            on_convicted=self._convicted,
        )
        self.devices = Devices(
            self.table, world.journal, self._mend, end=partial(_end, world)
        )
        self._resumption = Resumption(self.table, cast(Node, self))
        self._attach()
        self._look()

    def model(self, name: str) -> dict[str, Any] | None:
        return next((m for m in self.facts["models"] if m["id"] == name), None)

    def hear(self, facts: dict[str, Any]) -> None:
        if self.is_alive:
            self.facts = facts
            self._resumption.look()

    def is_quarantined(self, submit: Submit) -> bool:
        known = {q["fingerprint"] for q in self.facts.get("quarantined", ())}
        return fingerprint(submit.model, submit.ids[: submit.num_prompt]) in known

    def die(self) -> None:
        self.is_alive = False
        self._leave()

    def _attach(self) -> None:
        if not self.is_alive:
            return
        lease = self.lease = Lease(self, self.world.next_lease())
        self.world.node.rings.worker_attached(lease)  # type: ignore[arg-type]

    def _leave(self) -> None:
        if self.lease is not None:
            self.lease.is_open = False
            self.world.node.rings.worker_lost(self.lease)  # type: ignore[arg-type]
        self.devices.on_lost()

    def _mend(self) -> None:
        """The other requests lose their device for a moment."""
        self.world.loop.call_later(0.25, self._attach_anew)

    def _attach_anew(self) -> None:
        if self.is_alive:
            self._leave()
            self.world.loop.call_later(0.2, self._attach)

    def _look(self) -> None:
        if self.is_alive:
            self._resumption.look()
            self.world.loop.call_later(TICK_S, self._look)

    def _convicted(self, submit: Submit) -> None:
        prompt = submit.ids[: submit.num_prompt]
        told = Quarantine(fingerprint(submit.model, prompt), submit.model)
        self.world.judge.convicted(submit)
        self.world.loop.call_later(0.01, self.world.node.quarantined, self.lease, told)


def _end(world: World, fds: Any, **more: Any) -> WorkerEnd:
    pair = pair_of(world.pairs, fds)
    del more["generation"]
    return cast(WorkerEnd, WorkerSide(pair, **more))
