"""What follows when a device comes up, goes, speaks or is given up.

Supervisor. Workers hear first, then models, then everybody: a worker never reads rings
of a generation that is over.

    hello  ─▶ its models are ordered again
    loaded ─▶ the golden answer is compared ─▶ its model: loaded
    up     ─▶ rings to every worker ─▶ device.ready
    down   ─▶ `down` to every worker, with suspects ─▶ its models: recovering
           ─▶ device.died ─▶ its memory is back
    failed ─▶ its models: failed ─▶ device.failed
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ipc.attach import WorkerLink
from ipc.attachwire import Quarantine as Quarantined
from ipc.messages import Fault, LinkUp, Loaded, Unloaded
from neurond.chronicle import Chronicle
from neurond.deviceowner import NoWitness, Owner, Witness
from neurond.deviceslot import DeviceSlot
from neurond.golden import GoldenBook
from neurond.lifecycle import Lifecycle
from neurond.memoryback import LateMemory, memory_back
from neurond.quarantine import Quarantine
from neurond.rings import Rings
from neurond.states import DeviceEvent, ModelStatus
from neurond.suspects import Charge

WRONG_RESULT = "wrong result: a known prompt was answered otherwise than before"


@dataclass(slots=True)
class DeviceEvents:
    """`changed`: the facts are no longer as told; `on_failed`: a device is out.

    `before_reload` is told of a hello first; `reading` is what NVML said last of a
    GPU, by its uuid, empty = nothing.
    """

    rings: Rings
    lifecycle: Lifecycle
    chronicle: Chronicle
    changed: Callable[[], None]
    on_failed: Callable[[], None]
    before_reload: Callable[[DeviceSlot], None]
    reading: Callable[[str], Mapping[str, Any]]
    quarantine: Quarantine
    witness: Witness = field(default_factory=NoWitness)
    golden: GoldenBook = field(default_factory=GoldenBook)
    is_stopping: bool = False
    """Devices end because they must: no news."""
    _groups: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _late: dict[str, LateMemory] = field(default_factory=dict)

    def owner(self) -> Owner:
        return Owner(
            on_hello=self._hello,
            on_up=self._up,
            on_down=self._down,
            on_message=self._spoke,
            on_change=self._changed,
            memory_back=self._memory_back,
            spares=self._spares,
            groups=self._groups,
        )

    def quarantined(self, _worker: WorkerLink, told: Quarantined) -> None:
        """A worker says what its convicted request was."""
        if self.quarantine.add(told.fingerprint, told.model):
            known = {"model": told.model, "fingerprint": told.fingerprint}
            self.chronicle.note("request.quarantined", **known)
            self.changed()

    def _hello(self, device: DeviceSlot) -> None:
        self.witness.born(device)
        self.before_reload(device)
        device.begins_reload(len(self.lifecycle.placement.on(device)))
        self.lifecycle.device_hello(device)

    def _up(self, device: DeviceSlot) -> None:
        self.rings.device_up(device)
        self._note("device.ready", device)

    def _down(self, device: DeviceSlot, reason: str, charge: Charge) -> None:
        self.rings.device_down(device, reason, charge)
        self._lose_memory(device)
        for record in self.lifecycle.placement.on(device):
            if record.status is ModelStatus.UNLOADING:
                self.golden.forget(record.spec.id)
        self.lifecycle.device_lost(device, reason)
        if not self.is_stopping:
            charged = {
                "suspects": len(charge.suspects),
                "convicted": len(charge.convicted),
            }
            told = {name: count for name, count in charged.items() if count}
            self._note("device.died", device, reason=reason, **told)

    def _changed(self, device: DeviceSlot, event: DeviceEvent) -> None:
        if event is DeviceEvent.GIVE_UP:
            self.lifecycle.device_failed(device)
            self._note("device.failed", device, reason=device.reason)
            self.on_failed()
        elif event is DeviceEvent.SPAWN:
            self.witness.born(device)
            self._note("device.starting", device)
        elif event is DeviceEvent.KILL:
            self.witness.killed(device)
        self.changed()

    def _spoke(self, device: DeviceSlot, message: LinkUp) -> None:
        if isinstance(message, Fault):
            self.witness.faulted(device, message)
            if device.has_said_hello:  # before it there is no model to lose
                self.chronicle.poisoned(device.name, message)
        elif isinstance(message, Loaded) and not self._agrees(device, message):
            self._note("device.wrong_result", device, model=message.model)
            device.computes_wrongly(WRONG_RESULT)
        else:
            if isinstance(message, Unloaded):
                self.golden.forget(message.model)
            self.lifecycle.message(device, message)

    def _spares(self, device: DeviceSlot) -> str:
        self.witness.died(device)
        return self.witness.spares(device)

    # ---- the same answer as before (S19)

    def _agrees(self, device: DeviceSlot, told: Loaded) -> bool:
        record = self.lifecycle.records.get(told.model)
        return record is None or self.golden.agrees(record, device.spec, told)

    # ---- memory that comes back late (S35)

    async def _memory_back(self, device: DeviceSlot) -> None:
        placed = self.lifecycle.placement.on(device)
        needed = sum(record.needed_bytes for record in placed)
        await memory_back(lambda: self._free_bytes(device), needed)

    def _free_bytes(self, device: DeviceSlot) -> int | None:
        """None: it can't be told, or the kernel has freed it by now."""
        late = self._late.get(device.name)
        if late is not None:
            return device.memory_total_bytes - late.held_bytes()
        if device.spec.kind != "cuda":
            return None
        free: int | None = self.reading(device.spec.uuid).get("memory_free_bytes")
        return free

    def _lose_memory(self, device: DeviceSlot) -> None:
        """A fake device's bytes are as late as the options of its models say."""
        if device.spec.kind != "fake":
            return
        late = self._late.setdefault(device.name, LateMemory())
        for record in self.lifecycle.placement.on(device):
            if record.loaded is not None:
                late_s = float(record.spec.options.get("free_after_ms", 0)) / 1e3
                late.lose(record.loaded.resident_bytes, late_s)

    def _note(self, kind: str, device: DeviceSlot, **fields: Any) -> None:
        generation = device.generation
        self.chronicle.note(kind, device=device.name, generation=generation, **fields)
