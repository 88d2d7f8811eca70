"""Loads and unloads: from what is wanted to what is resident.

Supervisor. Owns every ModelRecord. A first load, a reload after a fault and a restore
after a restart are one path; only the first looks for a device.

    load  ─▶ resolve source ─▶ (convert) ─▶ admit by bytes ─▶ Load ─▶ Loaded
    joins ─▶ the load under way, one outcome for all (S15)
    a device dies ─▶ its models: recovering ─▶ Load at its next hello ─▶ Loaded

Invariant: every load and unload ends, with an outcome that is kept in the record;
`residency` moves when one begins or ends and never with traffic.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from ipc.errors import ClientError, HostError, ServiceError, from_wire
from ipc.messages import LinkUp, Loaded, LoadFailed, LoadProgress, Unload, Unloaded
from neurond import admission, sources
from neurond.config import Model
from neurond.deviceslot import DeviceSlot
from neurond.effects import Effects
from neurond.modelrecord import (
    ModelRecord,
    new_progress,
    new_record,
    outcome,
    strangers,
    unknown,
)
from neurond.placement import NONE_LEFT, Placement, is_used
from neurond.preparation import Preparation
from neurond.states import DeviceState, ModelEvent, ModelStatus

_MOST_LOAD_DEATHS = 2
_MOST_STRANGERS = 16
_POLL_S = 0.05
_LOADING = (ModelStatus.LOADING, ModelStatus.CONVERTING)


class Lifecycle:
    def __init__(
        self,
        known: Mapping[str, Model],
        effects: Effects,
        *,
        load_deadline_s: float,
        drain_s: float,
        preparation: Preparation | None = None,
    ) -> None:
        self.records = {name: ModelRecord(model) for name, model in known.items()}
        self.residency = 0
        self._effects = effects
        self._load_deadline_s = load_deadline_s
        self._drain_s = drain_s
        told = effects.devices, self.records, effects.cuda_problem
        self.placement = Placement(*told)
        self.preparation = preparation or Preparation(effects)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    # ---- orders

    def load(self, model: str, given: Mapping[str, Any]) -> ModelRecord:
        """Begin a load, or join what is under way. Raises ClientError."""
        sources.check_id(model)
        record = self.records.get(model) or new_record(model, given)
        if record.is_wanted:
            return record
        if record.status is ModelStatus.UNLOADING:
            raise ClientError(
                f"model {model} is being unloaded", code="version_conflict"
            )
        known = [device.name for device in self._effects.devices()]
        allowed = admission.allowed(tuple(given.get("devices") or ()), known)
        record.respecify(given)
        record.allowed = allowed
        if model not in self.records:
            for name in strangers(self.records)[:-_MOST_STRANGERS]:
                del self.records[name]
        self.records[model] = record
        self._begin_load(record)
        return record

    def refuse(self, model: str, error: ServiceError) -> None:
        """A model that was to be loaded and can't be shows why."""
        record = self.records.setdefault(model, ModelRecord(Model(model, "unknown")))
        record.begin(new_progress())
        record.move(ModelEvent.LOAD)
        self._failed(record, error)

    def unload(self, model: str) -> ModelRecord:
        """Begin an unload. Raises ClientError."""
        record = self.records.get(model)
        if record is None:
            raise unknown(model)
        if record.status in (ModelStatus.UNLOADED, ModelStatus.UNLOADING):
            return record
        had_failed = record.status is ModelStatus.FAILED
        record.move(ModelEvent.UNLOAD)
        if had_failed:
            record.error, record.reason, record.done = None, "", None
            self._moved()
            return record
        gone = ClientError(f"model {model} was unloaded", code="version_conflict")
        record.break_off(gone)
        record.begin_wait()
        self._moved("model.unloading", record)
        self._work_on(record, self._unload(record))
        return record

    async def wait(self, record: ModelRecord, timeout_s: float) -> None:
        """Until the load or unload under way has ended. Raises its error."""
        if record.done is not None:
            await asyncio.wait_for(asyncio.shield(record.done), timeout_s)

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- what devices say

    def device_hello(self, device: DeviceSlot) -> None:
        """Load again what it had; it serves when all of it is back."""
        for record in self.placement.on(device):
            device.send(record.load_on(device.generation, again=True))
        self._serve_if_whole(device)

    def device_lost(self, device: DeviceSlot, reason: str) -> None:
        """What was being unloaded is gone with it; the rest comes back, if it can."""
        for record in self.placement.on(device):
            was_loading = record.status in _LOADING
            record.move(ModelEvent.DEVICE_LOST)
            record.reason = reason
            record.lost()
            self._moved()
            if record.status is ModelStatus.UNLOADED:
                self._settle(record)
            elif was_loading and record.sent_generation == device.generation:
                self._count_load_death(record, device, reason)
            else:
                record.progress = new_progress()

    def device_failed(self, device: DeviceSlot) -> None:
        """It won't come back by itself; its models go to another, if one may."""
        text = f"device {device.name} was taken out: {device.reason}"
        for record in self.placement.on(device):
            record.devices.clear()
            if record.is_wanted and self.placement.has_hope(record):
                record.move(ModelEvent.DEVICE_LOST)
                record.loaded = None
                self._work_on(record, self._load(record))
            else:
                self._failed(record, self.placement.none_left(text))

    def message(self, device: DeviceSlot, message: LinkUp) -> None:
        match message:
            case LoadProgress(model=name):
                self._progressed(name, message)
            case Loaded(model=name) if name in self.records:
                self._loaded(self.records[name], device, message)
            case LoadFailed(model=name, error=wire) if name in self.records:
                self._failed(self.records[name], from_wire(wire))
                self._serve_if_whole(device)
            case Unloaded(model=name) if name in self.records:
                self.placement.freed(device)
                self._unloaded(self.records[name])
            case _:
                pass  # of a model that is gone, or nothing of ours

    # ---- loading

    def _begin_load(self, record: ModelRecord) -> None:
        record.begin(new_progress())
        record.move(ModelEvent.LOAD)
        self._moved("model.loading", record)
        self._work_on(record, self._load(record))

    async def _load(self, record: ModelRecord) -> None:
        try:
            await asyncio.wait_for(self.preparation.run(record), self._load_deadline_s)
            device = await self.placement.find(record, self._load_deadline_s)
        except TimeoutError:
            text = "the model's files could not be made ready in time"
            self._failed(record, HostError(text, code="load_failed"))
        except ServiceError as error:
            self._failed(record, error)
        except OSError as error:
            text = "the model's files can't be read"
            unread = HostError(text, code="load_failed")
            unread.__cause__ = error
            self._failed(record, unread)
        else:
            record.devices = [device.name]
            device.send(record.load_on(device.generation))
            self._effects.changed()

    # ---- outcomes

    def _progressed(self, name: str, told: LoadProgress) -> None:
        record = self.records.get(name)
        if record is not None and record.progress is not None:
            record.progress.report(told.stage, told.done, told.total)
            self._effects.changed()

    def _loaded(self, record: ModelRecord, device: DeviceSlot, told: Loaded) -> None:
        record.move(ModelEvent.LOADED)
        if record.status is not ModelStatus.LOADED:
            return  # an unload overtook it
        record.load_seconds = told.seconds
        record.succeed(told)
        self._effects.note("model.loaded", device=device.name, **outcome(told))
        self._moved()
        self._serve_if_whole(device)

    def _failed(self, record: ModelRecord, error: ServiceError) -> None:
        before = record.status
        record.move(ModelEvent.FAILED)
        if record.status is before:
            return  # it had ended already
        if record.status is ModelStatus.UNLOADED:
            self._settle(record)
            return
        record.fail(error)
        self._effects.note(
            "model.load_failed",
            model=record.spec.id,
            code=error.row.ref,
            reason=error.message,
            cause=" <- ".join(error.to_wire()[5]),
        )
        self._moved()

    def _count_load_death(
        self, record: ModelRecord, device: DeviceSlot, reason: str
    ) -> None:
        """A model that kills its device while it loads must not take it out."""
        record.num_load_deaths += 1
        if record.num_load_deaths >= _MOST_LOAD_DEATHS:
            text = f"device {device.name} died twice while it loaded the model"
            self._failed(record, HostError(text, code="load_failed", chain=(reason,)))

    def _unloaded(self, record: ModelRecord) -> None:
        if record.status is ModelStatus.UNLOADING:
            record.move(ModelEvent.UNLOADED)
            self._settle(record)

    def _settle(self, record: ModelRecord) -> None:
        record.devices.clear()
        record.loaded = record.progress = None
        record.reason = ""
        record.end()
        self._moved("model.unloaded", record)

    async def _unload(self, record: ModelRecord) -> None:
        """Requests that run may end; then the device lets go, if it has it at all."""
        slots = [s for s in self.placement.of(record) if s.has_said_hello]
        deadline_s = time.monotonic() + self._drain_s
        while is_used(record.spec.id, slots) and time.monotonic() < deadline_s:
            await asyncio.sleep(_POLL_S)
        if not slots:
            self._unloaded(record)
        for slot in slots:
            slot.send(Unload(record.spec.id))

    # ---- small things

    def _serve_if_whole(self, device: DeviceSlot) -> None:
        waiting = [r for r in self.placement.on(device) if r.loaded is None]
        is_starting = device.state is DeviceState.STARTING and device.has_said_hello
        if is_starting and not waiting:
            device.serving()
            self._try_again()

    def _try_again(self) -> None:
        """A device is up: what failed for the want of one may load now."""
        for record in self.records.values():
            error = record.error if record.status is ModelStatus.FAILED else None
            if error is not None and error.code in NONE_LEFT:
                self._begin_load(record)

    def _moved(self, kind: str = "", record: ModelRecord | None = None) -> None:
        """A load or unload began or ended; `kind` notes which."""
        if record is not None:
            self._effects.note(kind, model=record.spec.id)
        self.residency += 1
        self._effects.changed()

    def _work_on(self, record: ModelRecord, work: Coroutine[Any, Any, None]) -> None:
        """In the background; what was under way for the model is overtaken by it."""
        model = record.spec.id
        if model in self._tasks:
            self._tasks[model].cancel()
        self._tasks[model] = asyncio.get_running_loop().create_task(work)
