"""A device slot whose process is a sleeper and whose device is played by the test.

The slot, its link and its page are real; what a device would say and show, the test
says and shows: `Play.hello`, `Play.shows`, `Play.says`. Its process is killed for real.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from ipc.child import Child, Reaper, spawn
from ipc.link import Link
from ipc.messages import Hello, LinkUp
from ipc.status import Phase, StatusWriter
from neurond.devicelife import Deadlines
from neurond.deviceowner import Owner
from neurond.deviceslot import DeviceSlot
from neurond.discovery import DeviceSpec
from neurond.forker import Forker, ForkFailed, Order
from neurond.states import DeviceEvent, DeviceState
from neurond.suspects import Charge
from tests.neurond.slotkit import until

SLEEPER = ("/bin/sleep", "60")


class Immortal(Child):
    """SIGKILL has no effect on it, as in uninterruptible sleep; `end` has."""

    def kill(self, sig: int = 9) -> None:
        pass

    def end(self) -> None:
        super().kill()


class Stage:
    """Forks sleepers. `gate` holds a fork back; `fails` lets it come to nothing."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = False
        self.is_immortal = False
        self.children: list[Child] = []
        self.link: Link | None = None
        self.page: StatusWriter | None = None

    async def fork(self, _order: Order, fds: tuple[int, ...], _timeout_s: float) -> Any:
        self.drop()
        self.link = Link.from_fd(os.dup(fds[0]))
        self.page = StatusWriter(os.dup(fds[1]))
        await self.gate.wait()
        if self.fails:
            raise ForkFailed("told to")
        child = spawn("device", SLEEPER)
        if self.is_immortal:
            child = Immortal(child.name, child.pid, child.pidfd)
        self.children.append(child)
        return child

    def drop(self) -> None:
        if self.link is not None and self.page is not None:
            self.link.close()
            self.page.close()
            self.link = self.page = None


@dataclass
class Play:
    """`downs`: reason and charge of each end; `events`: what the slot went through."""

    stage: Stage
    downs: list[tuple[str, Charge]] = field(default_factory=list)
    events: list[DeviceEvent] = field(default_factory=list)
    heard: list[LinkUp] = field(default_factory=list)
    spared: str = ""
    memory: asyncio.Event = field(default_factory=asyncio.Event)
    models: int = 0

    def cast(self, reaper: Reaper, deadlines: Deadlines) -> DeviceSlot:
        owner = Owner(
            on_hello=lambda slot: slot.begins_reload(self.models),
            on_up=lambda _slot: None,
            on_down=lambda _slot, reason, charge: self.downs.append((reason, charge)),
            on_message=lambda _slot, message: self.heard.append(message),
            on_change=lambda _slot, event: self.events.append(event),
            memory_back=self._memory_back,
            spares=lambda _slot: self.spared,
            groups=itertools.count(1),
        )
        spec = DeviceSpec("fake-0", "fake", "played", "", 0, 0)
        forker = cast(Forker, self.stage)
        self.slot = DeviceSlot(spec, {}, owner, forker, reaper, deadlines)
        return self.slot

    async def _memory_back(self, _slot: DeviceSlot) -> None:
        await self.memory.wait()

    # ---- what the device does

    @property
    def child(self) -> Child:
        return self.stage.children[-1]

    async def hello(self) -> None:
        """It comes up."""
        generation = self.slot.generation
        await until(lambda: self.slot.pid is not None)
        self.says(Hello(self.child.pid, generation, "fake", 100, 100))
        await until(lambda: self.slot.has_said_hello)

    async def serves(self) -> None:
        await self.hello()
        self.slot.serving()

    def says(self, message: LinkUp) -> None:
        assert self.stage.link is not None
        self.stage.link.send(message)

    def shows(self, phase: Phase, *requests: int, deadline_s: float = 0.0) -> None:
        assert self.stage.page is not None
        self.stage.page.arm(phase, deadline_s, requests)

    def emits(self, tokens: int = 1) -> None:
        assert self.stage.page is not None
        self.stage.page.add("emitted_tokens_total", tokens)

    # ---- what becomes of it

    async def is_in(self, state: DeviceState, generation: int = 0) -> None:
        wanted = generation or self.slot.generation
        await until(lambda: (self.slot.state, self.slot.generation) == (state, wanted))

    async def ends(self) -> tuple[str, Charge]:
        """The next end of a life."""
        count = len(self.downs)
        await until(lambda: len(self.downs) > count)
        return self.downs[count]


@asynccontextmanager
async def playing(**deadlines: float) -> AsyncIterator[Play]:
    """A slot that was told to spawn, memory back at once; swept in the end."""
    stage = Stage()
    reaper = Reaper(asyncio.get_running_loop())
    play = Play(stage)
    play.memory.set()
    told = {"boot_s": 20.0, "load_s": 20.0, **deadlines}
    slot = play.cast(reaper, Deadlines(**told))
    slot.spawn()
    try:
        yield play
    finally:
        stage.gate.set()
        if slot.state is not DeviceState.STOPPED:
            slot.stop()
        for child in stage.children:
            if isinstance(child, Immortal):
                child.end()
        slot.stop_hard()
        await asyncio.wait_for(slot.gone.wait(), 5)
        await until(lambda: not any(child.alive for child in stage.children))
        stage.drop()
        reaper.close()
