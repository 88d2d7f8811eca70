"""The supervisor's parts: slots, rings, models, evidence, quarantine; one tick."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from ipc.attach import WorkerLink
from ipc.attachwire import Quarantine as Quarantined
from ipc.child import Reaper
from neurond.chronicle import Chronicle
from neurond.config import Model
from neurond.converter import Converter
from neurond.deviceevents import DeviceEvents
from neurond.devicelife import Deadlines, Senses
from neurond.deviceslot import DeviceSlot
from neurond.discovery import DeviceSpec
from neurond.effects import Effects
from neurond.forker import Forker
from neurond.hardware import Hardware
from neurond.lifecycle import Lifecycle
from neurond.modelrecord import ModelRecord
from neurond.preparation import Preparation
from neurond.quarantine import Quarantine
from neurond.rings import Rings
from neurond.states import DeviceState, ModelStatus
from tests.neurond.device.simulated import folder
from tests.simulation.device import Process
from tests.simulation.rings import Pair

if TYPE_CHECKING:
    from tests.simulation.world import World

TICK_S = 0.25
BOOT_S, LOAD_S, KILL_S = 3.0, 3.0, 2.0
GIB = 1 << 30


class _Ready(Preparation):
    """Every model's files are there."""

    async def run(self, record: ModelRecord) -> None:
        record.folder = str(folder())
        record.needed_bytes = 1


class Node:
    def __init__(self, world: World) -> None:
        self.world = world
        self.was_out = False
        self.has_loaded: set[str] = set()
        self._is_told = True
        self.slots: list[DeviceSlot] = []
        self.rings = Rings(lambda: self.slots, world.journal, pair=self._pair)
        self._quarantine = Quarantine(3600.0, clock=world.clock)
        self.hardware = Hardware(
            lambda: self.slots,
            note=self._note,
            silent_s=lambda: 0.0,
            drain_s=1.0,
            clock=world.clock,
        )
        effects = Effects(
            devices=lambda: self.slots,
            converter=cast(Converter, None),
            cache=Path(),
            note=self._note,
            changed=self._changed,
        )
        known = {
            name: Model(name, "fake", options=world.plan.options)
            for name in world.plan.models
        }
        self.lifecycle = Lifecycle(
            known,
            effects,
            load_deadline_s=60.0,
            drain_s=1.0,
            preparation=_Ready(effects),
        )
        events = SimpleNamespace(append=self._tell)
        chronicle = Chronicle(world.journal, cast(Any, events), lambda _event: None)
        self._events = DeviceEvents(
            self.rings,
            self.lifecycle,
            chronicle,
            changed=self._changed,
            on_failed=self._on_failed,
            before_reload=lambda slot: world.mishaps.before_reload(slot),
            reading=lambda _uuid: {},
            quarantine=self._quarantine,
            witness=self.hardware,
        )
        owner = self._events.owner()
        for name in world.plan.devices:
            slot = DeviceSlot(
                DeviceSpec(name, "fake", "simulated", f"uuid-{name}", GIB, 0),
                dict(world.plan.settings),
                owner,
                cast(Forker, None),
                cast(Reaper, None),
                Deadlines(BOOT_S, LOAD_S, KILL_S),
                process=cast(Any, partial(self._process, name)),
                senses=Senses(world.clock, lambda: world.num_oom_kills),
            )
            self.slots.append(slot)

    def start(self) -> None:
        for slot in self.slots:
            slot.spawn()
        for name in self.world.plan.models:
            self.lifecycle.load(name, {})
        self.world.loop.call_later(TICK_S, self._tick)

    def slot(self, name: str) -> DeviceSlot:
        return next(slot for slot in self.slots if slot.name == name)

    def process(self, name: str) -> Process | None:
        life = self.slot(name)._life
        return cast(Process, life.process) if life is not None else None

    def quarantined(self, worker: Any, told: Quarantined) -> None:
        self._events.quarantined(cast(WorkerLink, worker), told)

    @property
    def is_settled(self) -> bool:
        """Every device serves or is out."""
        over = (DeviceState.READY, DeviceState.FAILED)
        ended = (ModelStatus.LOADED, ModelStatus.FAILED)
        is_loaded = all(r.status in ended for r in self.lifecycle.records.values())
        return is_loaded and all(slot.state in over for slot in self.slots)

    def facts(self) -> dict[str, Any]:
        """What of the document workers look at here."""
        return {
            "devices": [
                {"device": slot.name, "state": str(slot.state)} for slot in self.slots
            ],
            "models": [
                {
                    "id": record.spec.id,
                    "status": str(record.status),
                    "devices": list(record.devices),
                    "error": record.error_wire(),
                }
                for record in self.lifecycle.records.values()
            ],
            "quarantined": self._quarantine.facts(),
        }

    def _tick(self) -> None:
        for slot in self.slots:
            slot.tick(late=False)
        self.hardware.tick()
        self.world.loop.call_later(TICK_S, self._tick)

    def _process(self, name: str, _reaper: Any, listener: Any) -> Process:
        return Process(self.world, name, listener)

    def _pair(self, *, generation: int, sealed: bool) -> Any:
        world = self.world
        number = len(world.pairs) + 1
        pair = Pair(number, world.loop, world.chance, world.plan.ring_room)
        if world.plan.breaks and world.chance.random() < 0.3:
            pair.breaks_at = world.chance.randint(1, 40)
        world.pairs[number] = pair
        return pair

    def _changed(self) -> None:
        """Facts are pushed a little later, many changes at once."""
        if self._is_told:
            self._is_told = False
            self.world.loop.call_later(0.02, self._push)

    def _push(self) -> None:
        self._is_told = True
        for worker in self.world.workers:
            worker.hear(self.facts())

    def _on_failed(self) -> None:
        self.was_out = True

    def _tell(self, kind: str, **fields: Any) -> None:
        self._note(kind, **fields)

    def _note(self, kind: str, **fields: Any) -> None:
        if kind == "model.loaded":
            self.has_loaded.add(fields["device"])
        told = " ".join(f"{k}={v}" for k, v in fields.items())
        self.world.trace("node", f"{kind} {told}")
