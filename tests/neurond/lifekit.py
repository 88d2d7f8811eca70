"""A lifecycle on devices without processes, its conversions and what it noted.

`says`, `dies`, `comes_back` and `is_taken_out` are what a supervisor would tell it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from ipc.messages import Convert, LinkUp
from neurond.config import Model
from neurond.converter import Converter
from neurond.effects import Effects
from neurond.lifecycle import Lifecycle
from neurond.modelrecord import ModelRecord
from neurond.states import DeviceState, ModelStatus
from tests.neurond.slotkit import GIB, Slot, as_slots, loaded_message, until


class Conversions:
    """A converter whose one conversion ends when the test says."""

    def __init__(self) -> None:
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked: list[Path] = []
        self.progress: Callable[[int, int], None] = lambda _done, _total: None

    async def convert(
        self, order: Convert, on_progress: Callable[[int, int], None]
    ) -> None:
        self.asked.append(Path(order.target))
        self.progress = on_progress
        await asyncio.shield(self.end)


class Node:
    """A lifecycle with its devices, and what it noted."""

    def __init__(self, cache: Path, *slots: Slot, deadline_s: float = 5.0) -> None:
        self.slots = slots or (Slot(),)
        self.noted: list[tuple[str, dict[str, Any]]] = []
        self.conversions = Conversions()
        effects = Effects(
            devices=lambda: as_slots(*self.slots),
            converter=cast(Converter, self.conversions),
            cache=cache,
            note=lambda kind, **fields: self.noted.append((kind, fields)),
            changed=lambda: None,
        )
        known = {
            "tiny": Model("tiny", "fake"),
            "other": Model("other", "fake"),
            "huge": Model("huge", "fake", options={"memory_bytes": 99 * GIB}),
            "lost": Model("lost", "/nowhere"),
        }
        self.life = Lifecycle(
            known, effects, load_deadline_s=deadline_s, drain_s=deadline_s
        )

    @property
    def slot(self) -> Slot:
        return self.slots[0]

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.noted]

    def status(self, model: str = "tiny") -> ModelStatus:
        return self.life.records[model].status

    def says(self, message: LinkUp, slot: Slot | None = None) -> None:
        self.life.message(as_slots(slot or self.slot)[0], message)

    def dies(self, slot: Slot | None = None, reason: str = "killed by SIGKILL") -> None:
        slot = slot or self.slot
        slot.state = DeviceState.BACKOFF
        slot.has_said_hello = False
        self.life.device_lost(as_slots(slot)[0], reason)

    def comes_back(self, slot: Slot | None = None) -> None:
        slot = slot or self.slot
        slot.state, slot.has_said_hello = DeviceState.STARTING, True
        self.life.device_hello(as_slots(slot)[0])

    def is_taken_out(self, slot: Slot | None = None) -> None:
        slot = slot or self.slot
        slot.state, slot.reason = DeviceState.FAILED, "5 lives without a token"
        self.life.device_failed(as_slots(slot)[0])

    async def sent(self, model: str = "tiny", **given: Any) -> ModelRecord:
        """A load whose order its device has."""
        record = self.life.load(model, given)
        before = sum(len(slot.sent) for slot in self.slots)
        await until(lambda: sum(len(slot.sent) for slot in self.slots) > before)
        return record

    async def loaded(self, model: str = "tiny", **given: Any) -> ModelRecord:
        record = await self.sent(model, **given)
        name = record.devices[0]
        slot = next(slot for slot in self.slots if slot.name == name)
        self.says(loaded_message(model), slot)
        return record
