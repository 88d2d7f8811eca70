"""A device's process: the real loop and engine on simulated time, and its ends.

`Child` is the process, `Process` what a device slot holds of it. A turn of the loop
happens at one moment; what it computes takes the time until the next turn.
"""

from __future__ import annotations

import asyncio
import select
import signal
from collections import deque
from collections.abc import Sequence as Listing
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from ipc.channel import DeviceEnd
from ipc.child import EXIT_TEMPORARY, Exit
from ipc.link import Link as RealLink
from ipc.link import LinkClosed
from ipc.messages import LinkDown, LinkUp, Load
from ipc.status import PageView, Phase, StatusWriter
from neurond.device import standins
from neurond.device.backend import Outcome, Work
from neurond.device.fake import FakeBackend
from neurond.device.injection import InjectingBackend
from neurond.device.settings import DeviceSettings
from neurond.device.surroundings import Surroundings
from neurond.device.worker import Worker
from neurond.deviceprocess import Listener
from neurond.forker import ForkFailed
from tests.simulation.page import Page
from tests.simulation.rings import DeviceSide, pair_of

if TYPE_CHECKING:
    from neurond.device.sequence import Sequence
    from tests.simulation.world import World

_SIGNALS = {
    "sigkill": signal.SIGKILL,
    "segv": signal.SIGSEGV,
    "abort": signal.SIGABRT,
}
_LINK_ROOM = 8
_IDLE_S = 0.5
"""An idle turn changes nothing that matters here, so there are few of them."""


class Ended(BaseException):
    """The process goes, or stands still for ever, here and now."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def _end(child: Child, kind: str) -> None:
    child.cause = kind
    raise Ended(kind)


class Backend(FakeBackend):
    """Faults of scripts end the simulated process; owners of requests are watched."""

    def __init__(self, child: Child) -> None:
        super().__init__(clock=child.world.clock, sleep=child.sleep)
        self._child = child
        self.present: dict[int, Sequence] = {}
        self.step: tuple[int, ...] = ()

    def prepare(self, sequence: Sequence) -> None:
        self.present[sequence.id] = sequence
        super().prepare(sequence)

    def release(self, sequence: Sequence) -> None:
        self.present.pop(sequence.id, None)
        super().release(sequence)

    def forward(self, works: Listing[Work]) -> list[Outcome]:
        self.step = tuple(work.sequence.id for work in works)
        for work in works:
            self.present[work.sequence.id] = work.sequence
        self._child.world.judge.step(self._child, works)
        return super().forward(works)

    def _fire(self, kind: str) -> None:
        self._child.world.judge.fires(self._child, kind)
        if kind == "sigkill":
            self._child.world.num_oom_kills += 1  # the kernel's, for want of memory
        if kind in standins.ENDS or kind == "exit111":
            raise Ended(kind)
        super()._fire(kind)


class _Poll:
    """Says how long the loop would wait; the waiting is done outside of it."""

    def __init__(self) -> None:
        self.timeout_ms: float | None = None

    def register(self, _fd: int, _events: int) -> None: ...
    def unregister(self, _fd: int) -> None: ...
    def poll(self, timeout_ms: float) -> list[Any]:
        self.timeout_ms = timeout_ms
        return []


class Link:
    """The device's end."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.orders: deque[tuple[LinkDown, list[int]]] = deque()
        self.loads_begun = 0

    def fileno(self) -> int:
        return 0

    def receive(self) -> tuple[LinkDown, list[int]] | None:
        if self._process.is_closed:
            raise LinkClosed
        if not self.orders:
            return None
        order, fds = self.orders.popleft()
        self.loads_begun += isinstance(order, Load)
        return order, fds

    def send(self, message: LinkUp, *, timeout_s: float = 0.0) -> None:
        if self._process.is_closed:
            raise LinkClosed
        self._process.hear(message)


class Child:
    """`is_immortal`: SIGKILL has no effect; `is_still`: it will never move again;
    `is_wrong`: its golden answer is another; `cause`: what ended it, if not itself."""

    def __init__(self, process: Process, generation: int, settings: Any) -> None:
        self.world = world = process.world
        self.name = process.name
        self.generation = generation
        self.pid = world.next_pid()
        self.process = process
        self.is_alive = True
        self.is_still = False
        self.is_immortal = False
        self.is_wrong = False
        self.cause = ""
        self.extra_s = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._is_woken = False
        self.backend = Backend(self)
        real = {kind: partial(_end, self, kind) for kind in standins.ENDS}
        self._poll = _Poll()
        self.page = process.page
        self._worker = Worker(
            cast(RealLink, process.link),
            cast(StatusWriter, self.page),
            InjectingBackend(self.backend, real, sleep=self.sleep),
            DeviceSettings.of(settings),
            world.journal,
            generation=generation,
            surroundings=Surroundings(
                clock=world.clock,
                poll=lambda: cast(select.poll, self._poll),
                end=self._side,
            ),
        )
        self._task = world.loop.create_task(self._run())

    def sleep(self, seconds: float) -> None:
        self.extra_s += seconds

    def wake(self) -> None:
        self._is_woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def kill(self) -> None:
        if self.is_alive and not self.is_immortal:
            self._exit(Exit(None, signal.SIGKILL))

    def stand_still(self) -> None:
        """As after SIGSTOP."""
        self.is_still = True
        self._task.cancel()

    def _side(self, fds: Any, *, generation: int) -> DeviceEnd:
        pair = pair_of(self.world.pairs, fds)
        return cast(DeviceEnd, DeviceSide(pair, self.wake))

    async def _run(self) -> None:
        try:
            await asyncio.sleep(self.world.boot_s(self))
            turns = self._worker.turns()
            while True:
                self._poll.timeout_ms = None
                next(turns)
                self._load_fault()
                await self._pause()
        except StopIteration as end:
            self._exit(Exit(int(end.value), None))
        except Ended as end:
            self._end(end.kind)

    def _end(self, kind: str) -> None:
        if kind == "hang":
            self.is_still = True
        elif kind == "exit111":
            self._exit(Exit(EXIT_TEMPORARY, None))
        else:
            self._exit(Exit(None, _SIGNALS[kind]))

    def _load_fault(self) -> None:
        kind = self.world.load_fault(self.name) if self.process.link.loads_begun else ""
        self.process.link.loads_begun = 0
        if kind:
            self.page.arm(Phase.LOAD, 2.0)
            raise Ended(kind)

    async def _pause(self) -> None:
        timeout_ms = self._poll.timeout_ms
        if timeout_ms is None:
            busy_s = self.world.chance.uniform(0.002, 0.02) + self.extra_s
            self.extra_s = 0.0
            await asyncio.sleep(busy_s)
            return
        if not self._is_woken:
            wait_s = _IDLE_S if timeout_ms >= 100 else timeout_ms / 1e3
            self._waiter = self.world.loop.create_future()
            timer = self.world.loop.call_later(wait_s, self.wake)
            await self._waiter
            timer.cancel()
        self._is_woken = False

    def _exit(self, end: Exit) -> None:
        if not self.is_alive:
            return
        self.is_alive = False
        self._task.cancel()
        self.world.judge.died(self, end)
        delay_s = self.world.chance.uniform(0.0, 0.01)
        self.world.loop.call_later(delay_s, self.process.exited, end)


class Process:
    """As `neurond.deviceprocess.DeviceProcess`."""

    def __init__(self, world: World, name: str, listener: Listener) -> None:
        self.world = world
        self.name = name
        self.is_closed = False
        self._is_killed = False
        self._listener = listener
        self.page = Page(world.clock)
        self.link = Link(self)
        self._up: deque[LinkUp] = deque()
        self.child: Child | None = None

    @property
    def pid(self) -> int | None:
        return self.child.pid if self.child is not None else None

    async def start(self, _forker: Any, order: Any, _timeout_s: float) -> None:
        await asyncio.sleep(self.world.chance.uniform(0.001, 0.05))
        if self.world.fails_fork(self.name):
            raise ForkFailed("told to")
        _, _, settings = order
        self.child = Child(self, settings["generation"], settings)
        self.world.judge.born(self.child)
        if self.is_closed or self._is_killed:
            self.child.kill()

    def view(self) -> PageView:
        return self.page.read()

    def send(self, message: LinkDown, fds: tuple[int, ...] = ()) -> bool:
        is_still = self.child is not None and self.child.is_still
        if is_still and len(self.link.orders) > _LINK_ROOM:
            return False
        self.link.orders.append((message, list(fds)))
        if self.child is not None and self.child.is_alive:
            self.child.wake()
        return True

    def kill(self) -> None:
        self._is_killed = True
        if self.child is not None:
            self.child.kill()

    def hear(self, message: LinkUp) -> None:
        self._up.append(message)
        delay_s = self.world.chance.uniform(0.0, 0.01)
        self.world.loop.call_later(delay_s, self.read)

    def read(self) -> None:
        while self._up and not self.is_closed:
            self._listener.on_message(self, self._up.popleft())  # type: ignore[arg-type]

    def close(self) -> PageView:
        self.is_closed = True
        return self.view()

    def exited(self, end: Exit) -> None:
        self._listener.on_exit(self, end)  # type: ignore[arg-type]
