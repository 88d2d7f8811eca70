"""Devices without processes: what lifecycle, facts and figures see of a slot.

`Slot` keeps what it was sent; its status page is a real one. `running` gives a test
an event loop of its own.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

from ipc.messages import LinkDown, Load, Loaded, Unload
from ipc.status import PageView, StatusReader, StatusWriter, create_page
from neurond.config import Model
from neurond.devicehistory import History
from neurond.deviceslot import DeviceSlot
from neurond.discovery import DeviceSpec
from neurond.modelrecord import ModelRecord, new_progress
from neurond.states import DeviceState, ModelEvent

GIB = 1 << 30


class Slot:
    """A device as its owner sees it; `state` is set by the test."""

    def __init__(self, name: str = "fake-0", free_bytes: int = GIB) -> None:
        self.spec = DeviceSpec(name, "fake", "scripted", f"uuid-{name}", 2 * GIB, 0)
        self.name = name
        self.state = DeviceState.READY
        self.has_said_hello = True
        self.reason = ""
        self.since_s = 5.0
        self.generation = 3
        self.cure = ""
        self.history = History()
        self.history.deaths = 2
        self.pid: int | None = 4242
        self.memory_total_bytes = 2 * GIB
        self.sent: list[LinkDown] = []
        self.page: PageView | None = None
        self._free_bytes = free_bytes

    @property
    def is_up(self) -> bool:
        return self.state is DeviceState.READY

    def send(self, message: LinkDown) -> None:
        self.sent.append(message)

    def serving(self) -> None:
        self.state = DeviceState.READY

    def view(self) -> PageView | None:
        return self.page

    def memory_free_bytes(self) -> int:
        return self._free_bytes

    @property
    def loads(self) -> list[str]:
        return [m.model for m in self.sent if isinstance(m, Load)]

    @property
    def unloads(self) -> list[str]:
        return [m.model for m in self.sent if isinstance(m, Unload)]


def as_slots(*slots: Slot) -> list[DeviceSlot]:
    return [cast(DeviceSlot, slot) for slot in slots]


def page(write: Callable[[StatusWriter], object]) -> PageView:
    """What a reader sees of a real page after `write`."""
    fd = create_page()
    writer, reader = StatusWriter(os.dup(fd)), StatusReader(fd)
    try:
        write(writer)
        return reader.read()
    finally:
        writer.close()
        reader.close()
        os.close(fd)


def loaded_message(model: str = "tiny", **info: Any) -> Loaded:
    return Loaded(model, 8192, 1000, 1.5, info)


def loaded_record(model: str = "tiny", device: str = "fake-0") -> ModelRecord:
    record = ModelRecord(Model(model, "fake"))
    record.progress = new_progress()
    record.move(ModelEvent.LOAD)
    record.devices = [device]
    record.move(ModelEvent.LOADED)
    record.succeed(loaded_message(model))
    return record


async def until(is_true: Callable[[], object], deadline_s: float = 3.0) -> None:
    end_s = time.monotonic() + deadline_s
    while not is_true():
        assert time.monotonic() < end_s, "it did not come true in time"
        await asyncio.sleep(0.002)


def running(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """The test runs in an event loop of its own."""

    @functools.wraps(test)
    def in_loop(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(20):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return in_loop
