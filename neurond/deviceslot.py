"""One device, life after life.

Supervisor. Owns the state (`states.DEVICE`), the present `Life` with its process, and
the counters of those before. It spawns, watches, kills and respawns; what a device is
for (models, rings) is its owner's business, told by callbacks:

    fork ─▶ Hello ─▶ on_hello (owner reloads models) ─▶ serving() ─▶ on_up
    exit ─▶ last words read ─▶ on_down ─▶ memory back, pause ─▶ fork, generation + 1

Invariant: death is the pidfd, never an opinion; nothing of generation g is used after
`on_down` of g. Every rung has a deadline of its own: hello, reload, each phase on the
page, the kill, the memory's return.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ipc.child import Exit, Reaper
from ipc.messages import Fault, Hello, LinkDown, LinkUp, Stop
from neurond.devicelife import REAL, Deadlines, Life, Senses
from neurond.deviceowner import Owner
from neurond.deviceprocess import DeviceProcess, Listener
from neurond.devicestanding import LIVING, DeviceStanding
from neurond.discovery import DeviceSpec
from neurond.forker import Forker, ForkFailed
from neurond.recovery import Part
from neurond.states import DeviceEvent, DeviceState, next_device_state
from neurond.suspects import NOBODY, Charge, Kill

_OVER = (DeviceState.STOPPING, DeviceState.STOPPED)


class DeviceSlot(DeviceStanding):
    """`settings`: what the process is told; `process` makes one life's, unborn."""

    def __init__(  # noqa: PLR0913  its collaborators
        self,
        spec: DeviceSpec,
        settings: dict[str, Any],
        owner: Owner,
        forker: Forker,
        reaper: Reaper,
        deadlines: Deadlines,
        *,
        process: Callable[[Reaper, Listener], DeviceProcess] = DeviceProcess,
        senses: Senses = REAL,
    ) -> None:
        super().__init__(spec)
        self.gone = asyncio.Event()
        self._settings = settings
        self._owner = owner
        self._forker = forker
        self._reaper = reaper
        self._deadlines = deadlines
        self._process = process
        self._senses = senses
        self._loop = asyncio.get_running_loop()
        self._taken_out = ""
        self._coming: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None

    # ---- orders

    def spawn(self) -> None:
        """A new life, in the background."""
        self._coming = None
        self.generation += 1
        self._move(DeviceEvent.SPAWN)
        listener = Listener(self._take, self._nonsense, self._exited)
        process = self._process(self._reaper, listener)
        life = self._life = Life(process, self._deadlines, self._senses)
        self._starting = self._loop.create_task(self._start(life))

    def begins_reload(self, num_models: int) -> None:
        """So many models are on their way back, under one deadline."""
        if self._life is not None:
            self._life.begins_reload(num_models)

    def serving(self) -> None:
        """Its models are back; requests may come."""
        if self._life is not None:
            self._life.serves()
        self._move(DeviceEvent.SERVING)
        self.history.recovery.reached(Part.RELOAD)
        self._owner.on_up(self)

    def send(self, message: LinkDown, fds: tuple[int, ...] = ()) -> None:
        """Nothing happens when it is dead; one that doesn't read is killed."""
        if self._life is not None and not self._life.process.send(message, fds):
            self.kill("it doesn't read its orders", Kill.OTHER)

    def kill(self, reason: str, kill: Kill = Kill.EVIDENCE) -> None:
        """SIGKILL; what follows, follows from its exit. `kill` says who may pay."""
        if self._life is None or self.state not in LIVING:
            return
        self.reason = reason
        self._life.was_killed(kill, reason)
        if kill is Kill.DEADLINE:
            self.history.recovery.died(self._life.dead_since_s())
        self._life.process.kill()
        self._move(DeviceEvent.KILL)

    def respawn(self, reason: str) -> None:
        """An operator wants a new process; this life's end is charged to nobody."""
        self.kill(reason, Kill.ORDER)

    def computes_wrongly(self, reason: str) -> None:
        """It is not to be trusted: ended before a token of it is seen (S19)."""
        if self._life is not None:
            self._life.is_wrong = True
            self._life.fault_class = "wrong_result"
        self.kill(reason, Kill.OTHER)

    def expects(self, reason: str, *, is_patient: bool) -> None:
        """This life is about to end for that; `is_patient`: try for ever (S39)."""
        if self._life is not None:
            self._life.expects(reason, is_patient=is_patient)

    def take_out(self, reason: str, cure: str) -> None:
        """No device any more until it is reset, after the cure.

        Its process is killed and not waited for (S36).
        """
        self.cure = cure
        if self.state is DeviceState.FAILED:
            self.reason = reason
        if self.state in (*_OVER, DeviceState.FAILED):
            return
        self._taken_out = reason
        self.kill(reason)
        if self.state is DeviceState.BACKOFF:
            self._stop_coming()
            self._give_up(reason)
        elif self.state is DeviceState.DYING:
            self._write_off(reason)

    def reset(self) -> None:
        """An operator wants another try for a failed device."""
        self.history.forgive()
        self._taken_out = self.cure = ""
        self._move(DeviceEvent.RESET)
        self._come_back(0.0)

    def stop(self) -> None:
        """Let it finish its step and end; `gone` is set when it has."""
        self._stop_coming()
        self.send(Stop())
        self._move(DeviceEvent.STOP)
        if self.pid is None:  # a fork under way gives up by itself
            self._close_process()
            self.gone.set()

    def stop_hard(self) -> None:
        if self._life is not None:
            self._life.process.kill()

    def tick(self, *, late: bool) -> None:
        """Kill what is past a deadline at two ticks in a row, unless we were late."""
        if self._life is None:
            return
        if self.state is DeviceState.DYING:
            if self._life.outlives_kill():
                self._write_off("SIGKILL has no effect")
        elif self.state in LIVING:
            overdue = self._life.overdue(late=late)
            if overdue:
                self.kill(f"{overdue} took longer than its deadline", Kill.DEADLINE)
            elif self.history.recovery.awaits_token and self.has_emitted():
                self.history.recovery.reached(Part.FIRST_TOKEN)

    # ---- what the process says; one of a past life is not heard

    async def _start(self, life: Life) -> None:
        told = {"kind": self.spec.kind, "generation": self.generation}
        order = ("device", self.name, self._settings | told)
        try:
            await life.process.start(self._forker, order, self._deadlines.boot_s)
        except ForkFailed as error:
            if life is self._life:
                self.history.fork_failed()
                self._ended(life, None, f"it could not be started: {error}")
        else:
            if life.killed is not None:
                life.forked_after_kill()

    def _take(self, process: DeviceProcess, message: LinkUp) -> None:
        life = self._life
        if life is None or process is not life.process:
            return
        match message:
            case Hello():
                life.said_hello(message)
                self.history.came_up()
                self.memory_total_bytes = message.memory_total_bytes
                self.history.recovery.reached(Part.RESPAWN)
                self._owner.on_hello(self)
            case Fault():
                life.said_last_words(message)
                self.reason = life.why
                self.history.heard(message)
                self._owner.on_message(self, message)
            case _:
                self._owner.on_message(self, message)

    def _nonsense(self, process: DeviceProcess, cause: str) -> None:
        if self._life is not None and process is self._life.process:
            self.kill(f"it talks nonsense on its link: {cause}", Kill.OTHER)

    def _exited(self, process: DeviceProcess, end: Exit) -> None:
        life = self._life
        if life is None or process is not life.process:
            return  # it was written off
        process.read()  # its last words, for which it may be taken out
        if life is not self._life:
            return
        self._ended(life, end, life.why or str(end))

    # ---- the end of a life

    def _ended(self, life: Life, end: Exit | None, reason: str) -> None:
        """`end` None: no process came of the fork."""
        charge = self._bury(life, end, reason) if end is not None else NOBODY
        self.reason = reason
        self._close_process()
        if self.state not in _OVER:
            self.history.deaths += 1
        self._owner.on_down(self, reason, charge)
        self._move(DeviceEvent.EXITED)
        if self.state is DeviceState.STOPPED:
            self.gone.set()
        elif self.state is DeviceState.BACKOFF:
            self._next_life()

    def _bury(self, life: Life, end: Exit | None, reason: str) -> Charge:
        if self.state in _OVER:
            return NOBODY
        if life.killed is not Kill.DEADLINE:
            self.history.recovery.died(life.dead_since_s())
        life.is_excused = bool(self._owner.spares(self))
        return self.history.ended(life, end, reason, self._owner.groups)

    def _write_off(self, reason: str) -> None:
        """A process in uninterruptible sleep is not waited for (S38)."""
        life, self.reason = self._life, reason
        charge = self._bury(life, None, reason) if life is not None else NOBODY
        self._close_process()
        self._owner.on_down(self, reason, charge)
        self._move(DeviceEvent.GIVE_UP)

    def _next_life(self) -> None:
        hopeless = self.history.why_hopeless()
        if self._taken_out:
            self._give_up(self._taken_out)
        elif hopeless:
            self._give_up(f"{hopeless}: {self.reason}")
        else:
            self._come_back(self.history.pause_s())

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self._move(DeviceEvent.GIVE_UP)

    def _come_back(self, delay_s: float) -> None:
        self._coming = self._loop.create_task(self._wait_and_spawn(delay_s))

    async def _wait_and_spawn(self, delay_s: float) -> None:
        """The pause runs while the memory comes back."""
        until_s = self._loop.time() + delay_s
        await self._owner.memory_back(self)
        self.history.recovery.reached(Part.MEMORY)
        await asyncio.sleep(until_s - self._loop.time())
        self.spawn()

    def _stop_coming(self) -> None:
        if self._coming is not None:
            self._coming.cancel()
            self._coming = None

    def _close_process(self) -> None:
        if self._life is not None:
            self.history.closed(self._life.process.close())
            self._life = None

    def _move(self, event: DeviceEvent) -> None:
        before = self.state
        self.state = next_device_state(before, event)
        if self.state is not before:
            self.since_s = time.time()
            self.history.states.enter(self.state)
        if event is DeviceEvent.SERVING:
            self.reason = ""  # until then it says why it was away
        self._owner.on_change(self, event)
