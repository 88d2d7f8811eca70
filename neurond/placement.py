"""Which models are on which device, and where the next one goes.

Supervisor; looks at records and devices, changes neither.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ipc.errors import (
    CapacityError,
    DeviceFault,
    HostError,
    ServiceError,
    error_for,
)
from neurond import admission
from neurond.deviceslot import DeviceSlot
from neurond.modelrecord import ModelRecord
from neurond.states import DeviceState

_POLL_S = 0.05
_FREEING_S = 30.0
"""How late the bytes of an unloaded model may show up (S35)."""
NONE_LEFT = ("device_failed", "cuda_unavailable")
"""Why a load failed that may go well once a device is up."""
_COMING = (
    DeviceState.ABSENT,
    DeviceState.STARTING,
    DeviceState.DYING,
    DeviceState.BACKOFF,
)


@dataclass(frozen=True, slots=True)
class Placement:
    devices: Callable[[], Iterable[DeviceSlot]]
    records: Mapping[str, ModelRecord]
    cuda_problem: Callable[[], str] = lambda: ""
    freed_s: dict[str, float] = field(default_factory=dict)

    def freed(self, device: DeviceSlot) -> None:
        """It let go of something; its memory may not show it yet."""
        self.freed_s[device.name] = time.monotonic()

    def on(self, device: DeviceSlot) -> list[ModelRecord]:
        return [r for r in self.records.values() if device.name in r.devices]

    def of(self, record: ModelRecord) -> list[DeviceSlot]:
        return [d for d in self.devices() if d.name in record.devices]

    def has_hope(self, record: ModelRecord) -> bool:
        """A device that may hold it is up or comes up."""
        slots = self._allowed(record)
        return any(slot.is_up or slot.state in _COMING for slot in slots)

    def none_left(self, text: str) -> ServiceError:
        """Why nothing can be loaded; a driver that doesn't fit names its cure."""
        problem = self.cuda_problem()
        if problem:
            return error_for("cuda_unavailable", problem)
        return DeviceFault(text, code="device_failed")

    def _allowed(self, record: ModelRecord) -> list[DeviceSlot]:
        return [slot for slot in self.devices() if slot.name in record.allowed]

    async def find(self, record: ModelRecord, timeout_s: float) -> DeviceSlot:
        """One that is up and has room; waits for devices that are coming up."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            slots = self._allowed(record)
            ready = [slot for slot in slots if slot.is_up]
            if ready:
                chosen = self._roomiest(record, ready)
                if chosen is not None:
                    return chosen
            elif not any(slot.state in _COMING for slot in slots):
                raise self.none_left("every device was taken out")
            await asyncio.sleep(_POLL_S)
        raise HostError("no device came up in time", code="load_failed")

    def _roomiest(
        self, record: ModelRecord, ready: list[DeviceSlot]
    ) -> DeviceSlot | None:
        """None: no room, but memory is on its way back. Raises CapacityError."""
        rooms = [self._room(slot) for slot in ready]
        try:
            chosen = admission.place(record.spec.id, record.needed_bytes, rooms)
        except CapacityError:
            since_s = time.monotonic() - _FREEING_S
            if any(self.freed_s.get(slot.name, 0.0) > since_s for slot in ready):
                return None
            raise
        return next(slot for slot in ready if slot.name == chosen)

    def _room(self, device: DeviceSlot) -> admission.Room:
        placed = self.on(device)
        reserved = sum(r.needed_bytes for r in placed if r.loaded is None)
        free_bytes = device.memory_free_bytes() - reserved
        return admission.Room(device.name, free_bytes, len(placed))


def is_used(model: str, slots: Iterable[DeviceSlot]) -> bool:
    """Requests run on it or wait for it."""
    views = [view for slot in slots if (view := slot.view()) is not None]
    rows = [row for view in views for row in view.models if row.name == model]
    return any(row.running + row.queued for row in rows)
