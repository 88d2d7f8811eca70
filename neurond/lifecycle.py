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
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipc.errors import ClientError, DeviceFault, HostError, ServiceError, from_wire
from ipc.messages import (
    LinkUp,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    Unload,
    Unloaded,
)
from neurond import admission, sources
from neurond.config import Model
from neurond.converter import Converter
from neurond.deviceslot import DeviceSlot
from neurond.modelrecord import ModelRecord, new_progress
from neurond.stages import WITH_CONVERSION, Progress
from neurond.states import DeviceState, ModelEvent, ModelStatus

_MOST_LOAD_DEATHS = 2
_POLL_S = 0.05
_WAITING = (DeviceState.ABSENT, DeviceState.STARTING, DeviceState.BACKOFF)
_LOADING = (ModelStatus.LOADING, ModelStatus.CONVERTING)


@dataclass(frozen=True, slots=True)
class Effects:
    """What a lifecycle acts through."""

    devices: Callable[[], Iterable[DeviceSlot]]
    converter: Converter
    cache: Path
    note: Callable[..., None]
    changed: Callable[[], None]


class Lifecycle:
    def __init__(
        self,
        known: Mapping[str, Model],
        effects: Effects,
        *,
        load_deadline_s: float,
        drain_s: float,
    ) -> None:
        self.records = {name: ModelRecord(model) for name, model in known.items()}
        self.residency = 0
        self._effects = effects
        self._load_deadline_s = load_deadline_s
        self._drain_s = drain_s
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- orders

    def load(self, model: str, given: Mapping[str, Any]) -> ModelRecord:
        """Begin a load, or join what is under way. Raises ClientError."""
        record = self._record(model, given)
        if record.is_wanted:
            return record
        if record.status is ModelStatus.UNLOADING:
            raise ClientError(
                f"model {model} is being unloaded", code="version_conflict"
            )
        changes = {k: v for k, v in given.items() if k not in ("devices",)}
        record.respecify(**changes)
        known = [device.name for device in self._effects.devices()]
        wanted = given.get("devices") or ()
        allowed = admission.allowed(tuple(wanted), known)
        record.begin(new_progress())
        record.move(ModelEvent.LOAD)
        self._begun(record, "model.loading")
        self._spawn(self._load(record, allowed))
        return record

    def unload(self, model: str) -> ModelRecord:
        """Begin an unload. Raises ClientError."""
        record = self.records.get(model)
        if record is None:
            raise _unknown(model)
        if record.status in (ModelStatus.UNLOADED, ModelStatus.UNLOADING):
            return record
        had_failed = record.status is ModelStatus.FAILED
        record.move(ModelEvent.UNLOAD)
        if had_failed:
            record.error, record.reason, record.done = None, "", None
            self._moved()
            return record
        if record.is_busy:  # whoever waits for the load hears that it is over
            record.done.set_exception(_was_unloaded(model))  # type: ignore[union-attr]
        record.begin_wait()
        self._begun(record, "model.unloading")
        self._spawn(self._unload(record))
        return record

    async def wait(self, record: ModelRecord, timeout_s: float) -> None:
        """Until the load or unload under way has ended. Raises its error."""
        if record.done is not None:
            await asyncio.wait_for(asyncio.shield(record.done), timeout_s)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- what devices say

    def device_hello(self, device: DeviceSlot) -> None:
        """Load again what it had; it serves when all of it is back."""
        for record in self._placed_on(device):
            self._send_load(record, device)
        self._serve_if_whole(device)

    def device_lost(self, device: DeviceSlot, reason: str) -> None:
        for record in self._placed_on(device):
            was_loading = record.status in _LOADING
            record.move(ModelEvent.DEVICE_LOST)
            record.reason = reason
            record.loaded = None
            if record.status is ModelStatus.UNLOADED:
                record.devices.clear()
                record.end()
            elif was_loading:
                self._count_load_death(record, device, reason)
            else:
                record.progress = new_progress()
        self._moved()

    def device_failed(self, device: DeviceSlot) -> None:
        """It won't come back by itself: nor will its models."""
        for record in self._placed_on(device):
            text = f"device {device.name} was taken out: {device.reason}"
            self._failed(record, DeviceFault(text, code="device_failed"))

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
                self._unloaded(self.records[name])
            case _:
                pass  # of a model that is gone, or nothing of ours

    # ---- loading

    def _record(self, model: str, given: Mapping[str, Any]) -> ModelRecord:
        sources.check_id(model)
        if model not in self.records:
            source = given.get("source")
            if not isinstance(source, str) or not source:
                raise _unknown(model)
            self.records[model] = ModelRecord(Model(model, source))
        return self.records[model]

    async def _load(self, record: ModelRecord, allowed: tuple[str, ...]) -> None:
        try:
            await asyncio.wait_for(self._prepare(record), self._load_deadline_s)
            device = await self._find_device(record, allowed)
        except TimeoutError:
            text = "the model's files could not be made ready in time"
            self._failed(record, HostError(text, code="load_failed"))
        except ServiceError as error:
            self._failed(record, error)
        except OSError as error:
            text = "the model's files can't be read"
            chain = (f"{type(error).__name__}: {error}",)
            self._failed(record, HostError(text, code="load_failed", chain=chain))
        else:
            if record.status is ModelStatus.LOADING:
                record.devices = [device.name]
                self._send_load(record, device)
                self._effects.changed()

    async def _prepare(self, record: ModelRecord) -> None:
        """A folder that can be loaded, and how many bytes it will hold."""
        loop = asyncio.get_running_loop()
        cache = self._effects.cache
        source = await loop.run_in_executor(None, sources.resolve, record.spec, cache)
        record.digest = source.digest
        if source.kind == "fake":
            from neurond.device.fakemodel import build

            context = record.spec.context
            build(source.folder, **({"context": context} if context else {}))
            told = record.spec.options.get("memory_bytes", 0)
            record.needed_bytes = int(told)
        elif source.kind == "gguf" and not sources.is_converted(source):
            await self._convert(record, source)
        record.folder = str(source.folder)
        if source.kind != "fake":
            record.needed_bytes = sources.weight_bytes(source.folder)

    async def _convert(self, record: ModelRecord, source: sources.Source) -> None:
        assert source.file is not None
        progress = record.progress = Progress(WITH_CONVERSION, time.monotonic())
        record.move(ModelEvent.CONVERT)
        self._effects.changed()

        def on_progress(done: int, total: int) -> None:
            progress.report("converting", done, total)
            self._effects.changed()

        source.folder.parent.mkdir(parents=True, exist_ok=True)
        await self._effects.converter.convert(source.file, source.folder, on_progress)
        if record.status is ModelStatus.CONVERTING:
            record.move(ModelEvent.LOAD)

    async def _find_device(
        self, record: ModelRecord, allowed: tuple[str, ...]
    ) -> DeviceSlot:
        """One that is up and has room; waits for devices that are coming up."""
        deadline_s = time.monotonic() + self._load_deadline_s
        while time.monotonic() < deadline_s:
            slots = [d for d in self._effects.devices() if d.name in allowed]
            ready = [slot for slot in slots if slot.is_up]
            if not ready and any(slot.state in _WAITING for slot in slots):
                await asyncio.sleep(_POLL_S)
                continue
            if not ready:
                raise DeviceFault("every device was taken out", code="device_failed")
            rooms = [self._room(slot) for slot in ready]
            chosen = admission.place(record.spec.id, record.needed_bytes, rooms)
            return next(slot for slot in ready if slot.name == chosen)
        raise HostError("no device came up in time", code="load_failed")

    def _room(self, device: DeviceSlot) -> admission.Room:
        placed = self._placed_on(device)
        reserved = sum(r.needed_bytes for r in placed if r.loaded is None)
        free_bytes = device.memory_free_bytes() - reserved
        return admission.Room(device.name, free_bytes, len(placed))

    def _send_load(self, record: ModelRecord, device: DeviceSlot) -> None:
        spec = record.spec
        device.send(
            Load(
                model=spec.id,
                folder=record.folder,
                dtype=spec.dtype,
                quant=spec.quant,
                context=spec.context,
                options=dict(spec.options),
            )
        )

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
        self._effects.note(
            "model.loaded", model=told.model, device=device.name, seconds=told.seconds
        )
        self._moved()
        self._serve_if_whole(device)

    def _failed(self, record: ModelRecord, error: ServiceError) -> None:
        record.move(ModelEvent.FAILED)
        if record.status is ModelStatus.UNLOADED:
            self._settle(record)
            return
        record.fail(error)
        self._effects.note(
            "model.load_failed",
            model=record.spec.id,
            code=error.row.ref,
            reason=error.message,
            cause=" <- ".join(error.chain),
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
        record.end()
        self._effects.note("model.unloaded", model=record.spec.id)
        self._moved()

    async def _unload(self, record: ModelRecord) -> None:
        """Requests that run may end; then the device lets go."""
        slots = [d for d in self._effects.devices() if d.name in record.devices]
        deadline_s = time.monotonic() + self._drain_s
        while _is_used(record.spec.id, slots) and time.monotonic() < deadline_s:
            await asyncio.sleep(_POLL_S)
        if not slots:
            self._unloaded(record)
        for slot in slots:
            slot.send(Unload(record.spec.id))

    # ---- small things

    def _serve_if_whole(self, device: DeviceSlot) -> None:
        waiting = [r for r in self._placed_on(device) if r.loaded is None]
        is_starting = device.state is DeviceState.STARTING and device.has_said_hello
        if is_starting and not waiting:
            device.serving()

    def _placed_on(self, device: DeviceSlot) -> list[ModelRecord]:
        return [r for r in self.records.values() if device.name in r.devices]

    def _begun(self, record: ModelRecord, kind: str) -> None:
        self._effects.note(kind, model=record.spec.id)
        self._moved()

    def _moved(self) -> None:
        self.residency += 1
        self._effects.changed()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_used(model: str, slots: list[DeviceSlot]) -> bool:
    views = [view for slot in slots if (view := slot.view()) is not None]
    rows = [row for view in views for row in view.models if row.name == model]
    return any(row.running + row.queued for row in rows)


def _unknown(model: str) -> ClientError:
    words = f"model {model} is not known here, and no source was given"
    return ClientError(words, code="model_not_found", param="model_id")


def _was_unloaded(model: str) -> ClientError:
    return ClientError(f"model {model} was unloaded", code="version_conflict")
