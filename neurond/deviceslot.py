"""One device, life after life.

Supervisor. Owns the state (`states.DEVICE`), the present `DeviceProcess` and the
counters of those before. It spawns, watches, kills and respawns; what a device is for
(models, rings) is its owner's business, told by callbacks:

    fork ─▶ Hello ─▶ on_hello (owner reloads models) ─▶ serving() ─▶ on_up
    exit ─▶ last words read ─▶ on_down ─▶ pause ─▶ fork, generation + 1

Invariant: death is the pidfd, never an opinion; nothing of generation g is used after
`on_down` of g. Every life has a deadline to say hello, every kill one to take effect.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ipc.child import Exit, Reaper
from ipc.messages import Fault, Hello, LinkDown, LinkUp, Stop
from ipc.status import PageView, Phase
from neurond.deviceprocess import DeviceProcess, Listener, fault_fact
from neurond.discovery import DeviceSpec
from neurond.forker import Forker, ForkFailed
from neurond.odometer import Odometer
from neurond.states import (
    DeviceEvent,
    DeviceState,
    is_hopeless,
    next_device_state,
    pause_s,
)

_KILL_TIMEOUT_S = 10.0
_TICKS_OVERDUE = 2
_LIVING = (DeviceState.STARTING, DeviceState.READY)
_OVER = (DeviceState.STOPPING, DeviceState.STOPPED)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom a device tells what happens to it."""

    on_hello: Callable[[DeviceSlot], None]
    on_up: Callable[[DeviceSlot], None]
    on_down: Callable[[DeviceSlot, str], None]
    on_message: Callable[[DeviceSlot, LinkUp], None]
    on_change: Callable[[DeviceSlot, DeviceEvent], None]


class DeviceSlot:
    """`settings`: what the process is told; `boot_deadline_s` covers fork to hello."""

    def __init__(  # noqa: PLR0913  its collaborators
        self,
        spec: DeviceSpec,
        settings: dict[str, Any],
        owner: Owner,
        forker: Forker,
        reaper: Reaper,
        *,
        boot_deadline_s: float,
    ) -> None:
        self.spec = spec
        self.state = DeviceState.ABSENT
        self.generation = 0
        self.since_s = time.time()
        self.reason = ""
        self.deaths = 0
        self.last_fault: dict[str, Any] | None = None
        self.odometer = Odometer()
        self.memory_total_bytes = spec.memory_total_bytes
        self.gone = asyncio.Event()
        self._settings = settings
        self._owner = owner
        self._forker = forker
        self._reaper = reaper
        self._boot_deadline_s = boot_deadline_s
        self._loop = asyncio.get_running_loop()
        self._process: DeviceProcess | None = None
        self._hello: Hello | None = None
        self._born_s = 0.0
        self._killed_s = 0.0
        self._overdue = 0
        self._num_unproductive = 0
        self._num_failed_forks = 0
        self._is_end_ordered = False
        self._has_said_why = False
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    # ---- what is

    @property
    def name(self) -> str:
        return self.spec.device

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def is_up(self) -> bool:
        return self.state is DeviceState.READY

    @property
    def has_said_hello(self) -> bool:
        return self._hello is not None and self.state in _LIVING

    def view(self) -> PageView | None:
        """The status page now; None while there is no process."""
        return self._process.view() if self._process else None

    def memory_free_bytes(self) -> int:
        view = self.view()
        told = view.gauges["memory_free_bytes"] if view else 0
        if told:
            return told
        return self._hello.memory_free_bytes if self._hello else 0

    # ---- orders

    def spawn(self) -> None:
        """A new life, in the background."""
        self._timer = None
        self.generation += 1
        self._move(DeviceEvent.SPAWN)
        self._hello = None
        self._is_end_ordered = self._has_said_why = False
        self._overdue = 0
        self._born_s = time.monotonic()
        listener = Listener(self._take, self._nonsense, self._exited)
        process = self._process = DeviceProcess(self._reaper, listener)
        self._task = self._loop.create_task(self._start(process))

    def serving(self) -> None:
        """Its models are back; requests may come."""
        self._move(DeviceEvent.SERVING)
        self._owner.on_up(self)

    def send(self, message: LinkDown, fds: tuple[int, ...] = ()) -> None:
        """Nothing happens when it is dead; one that doesn't read is killed."""
        if self._process is not None and not self._process.send(message, fds):
            self.kill("it doesn't read its orders")

    def kill(self, reason: str) -> None:
        """SIGKILL; what follows, follows from its exit."""
        if self._process is None or self.state not in _LIVING:
            return
        self.reason = reason
        self._killed_s = time.monotonic()
        self._process.kill()
        self._move(DeviceEvent.KILL)

    def respawn(self, reason: str) -> None:
        """An operator wants a new process; this life's end is charged to nobody."""
        self.kill(reason)
        self._is_end_ordered = self.state is DeviceState.DYING

    def reset(self) -> None:
        """An operator wants another try for a failed device."""
        self._num_unproductive = 0
        self._move(DeviceEvent.RESET)
        self._schedule(0.0)

    def stop(self) -> None:
        """Let it finish its step and end; `gone` is set when it has."""
        if self._timer is not None:
            self._timer.cancel()
        self.send(Stop())
        self._move(DeviceEvent.STOP)
        if self.pid is None:  # a fork under way gives up by itself
            self._close_process()
            self.gone.set()

    def stop_hard(self) -> None:
        if self._process is not None:
            self._process.kill()

    def tick(self, *, late: bool) -> None:
        """Kill what is past a deadline at two ticks in a row, unless we were late."""
        if self.state is DeviceState.DYING:
            self._check_kill()
            return
        overdue = self.state in _LIVING and self._overdue_phase()
        self._overdue = self._overdue + 1 if overdue and not late else 0
        if self._overdue >= _TICKS_OVERDUE:
            self._overdue = 0
            self.kill(f"{overdue} took longer than its deadline")

    def _overdue_phase(self) -> str:
        now_s = time.monotonic()
        if self._hello is None and now_s > self._born_s + self._boot_deadline_s:
            return "boot"
        view = self.view()
        if view is None or not view.deadline_s or now_s <= view.deadline_s:
            return ""
        return Phase(view.phase).name.lower()

    def _check_kill(self) -> None:
        """A process in uninterruptible sleep is written off, not waited for (S38)."""
        if time.monotonic() > self._killed_s + _KILL_TIMEOUT_S:
            self.reason = "SIGKILL has no effect"
            self._close_process()
            self._owner.on_down(self, self.reason)
            self._move(DeviceEvent.GIVE_UP)

    # ---- what the process says; one of a past life is not heard

    async def _start(self, process: DeviceProcess) -> None:
        told = {"kind": self.spec.kind, "generation": self.generation}
        order = ("device", self.name, self._settings | told)
        try:
            await process.start(self._forker, order, self._boot_deadline_s)
        except ForkFailed as error:
            if process is self._process:
                self._num_failed_forks += 1
                self._ended(f"it could not be started: {error}")

    def _take(self, process: DeviceProcess, message: LinkUp) -> None:
        if process is not self._process:
            return
        match message:
            case Hello():
                self._hello = message
                self._num_failed_forks = 0
                self.memory_total_bytes = message.memory_total_bytes
                self._owner.on_hello(self)
            case Fault():
                # goes out over HTTP; the texts of the chain may name files (S51)
                self.reason = f"{message.fault_class} fault, {message.type}"
                self._has_said_why = True
                kind, chain = message.fault_class, message.chain
                self.last_fault = fault_fact(message.type, chain, kind)
                self._owner.on_message(self, message)
            case _:
                self._owner.on_message(self, message)

    def _nonsense(self, process: DeviceProcess, cause: str) -> None:
        if process is self._process:
            self.kill(f"it talks nonsense on its link: {cause}")

    def _exited(self, process: DeviceProcess, end: Exit) -> None:
        if process is not self._process:
            return  # it was written off
        process.read()  # its last words
        if self.state not in _OVER and not self._has_said_why:
            self.last_fault = fault_fact(str(end), ())
        self._charge(process.view())
        self._ended(self.reason or str(end))

    # ---- the end of a life

    def _ended(self, reason: str) -> None:
        self.reason = reason
        self._close_process()
        if self.state not in _OVER:
            self.deaths += 1
        self._owner.on_down(self, reason)
        self._move(DeviceEvent.EXITED)
        if self.state is DeviceState.STOPPED:
            self.gone.set()
        elif self.state is DeviceState.BACKOFF:
            self._next_life()

    def _charge(self, last: PageView) -> None:
        if last.counters["emitted_tokens_total"]:
            self._num_unproductive = 0
        elif not self._is_end_ordered:
            self._num_unproductive += 1

    def _next_life(self) -> None:
        """A fork that failed says nothing about the device, but isn't hurried."""
        if is_hopeless(self._num_unproductive):
            lives = f"{self._num_unproductive} lives without a token"
            self.reason = f"{lives}: {self.reason}"
            self._move(DeviceEvent.GIVE_UP)
        else:
            self._schedule(pause_s(self._num_unproductive + self._num_failed_forks))

    def _schedule(self, delay_s: float) -> None:
        self._timer = self._loop.call_later(delay_s, self.spawn)

    def _close_process(self) -> None:
        if self._process is not None:
            self.odometer.fold(self._process.close())
            self._process = None

    def _move(self, event: DeviceEvent) -> None:
        before = self.state
        self.state = next_device_state(before, event)
        if self.state is not before:
            self.since_s = time.time()
        if event in (DeviceEvent.SPAWN, DeviceEvent.SERVING):
            self.reason = ""
        self._owner.on_change(self, event)
