"""What a supervisor knows of one life of a device: its deadlines, its end, who pays.

Supervisor. Made for each generation beside its `DeviceProcess` and dropped with it. It
decides nothing alone: the slot asks which deadline is past, and how the life ended.

    fork ── boot deadline ──▶ Hello ── reload deadline ──▶ serving
    any phase ── the page's deadline, past at two ticks in a row ──▶ kill
    idle ── no beat for 10 s, at two ticks in a row ──▶ kill
    kill ── 10 s ──▶ written off

Invariant: a tick that came late itself makes nobody overdue.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ipc.child import Exit
from ipc.messages import Fault, Hello
from ipc.status import PageView, Phase
from neurond.deviceprocess import DeviceProcess
from neurond.suspects import Ending, Kill

TICKS_OVERDUE = 2
_STILL_S = 10.0
"""An idle loop turns every tenth of a second."""
_VMSTAT = Path("/proc/vmstat")


@dataclass(frozen=True, slots=True)
class Deadlines:
    """`boot_s`: fork to hello; `load_s`: one model's reload; `kill_s`: SIGKILL to its
    effect."""

    boot_s: float
    load_s: float
    kill_s: float = 10.0


def oom_kills(vmstat: Path = _VMSTAT) -> int:
    """Processes that the kernel has ended so far for want of memory; 0 = unknown."""
    try:
        lines = vmstat.read_text().splitlines()
    except OSError:
        return 0
    counts = [line.split()[1] for line in lines if line.startswith("oom_kill ")]
    return int(counts[0]) if counts else 0


@dataclass(frozen=True, slots=True)
class Senses:
    """What a life is told of its host: the time as pages have it, and how many
    processes the kernel has ended for want of memory."""

    clock: Callable[[], float] = time.monotonic
    oom_kills: Callable[[], int] = oom_kills


REAL = Senses()


def has_given(view: PageView) -> bool:
    """A token, or the whole of an answer that has none: a vector."""
    counters = view.counters
    return bool(counters["emitted_tokens_total"] or counters["requests_finished_total"])


class Life:
    """`why`: what is told of its end, once that is known."""

    def __init__(
        self, process: DeviceProcess, deadlines: Deadlines, senses: Senses
    ) -> None:
        self.process = process
        self._senses = senses
        self._clock = senses.clock
        self.hello: Hello | None = None
        self.fault: Fault | None = None
        self.killed: Kill | None = None
        self.why = ""
        self.is_excused = False
        self.is_wrong = False
        self.is_patient = False
        self.fault_class = "crash"
        self._deadlines = deadlines
        self._until_s = self._clock() + deadlines.boot_s
        self._killed_s = 0.0
        self._dead_since_s = 0.0
        self._num_overdue = 0
        self._oom_kills = senses.oom_kills()

    # ---- what happens in it

    def said_hello(self, hello: Hello) -> None:
        self.hello = hello

    def begins_reload(self, num_models: int) -> None:
        """Each has its deadline on the page; this one is for a device that forgets."""
        self._until_s = self._clock() + self._deadlines.load_s * (num_models + 1)

    def serves(self) -> None:
        self._until_s = 0.0

    def said_last_words(self, fault: Fault) -> None:
        """What goes out over HTTP; the texts of the chain may name files (S51)."""
        self.fault = fault
        self.fault_class = fault.fault_class
        self.why = self.why or f"{fault.fault_class} fault, {fault.type}"

    def expects(self, why: str, *, is_patient: bool) -> None:
        """Why it is about to end; `is_patient`: later that may go by itself."""
        self.why, self.is_patient = why, is_patient

    def was_killed(self, kill: Kill, why: str) -> None:
        self.killed, self.why = kill, why
        self._killed_s = self._clock()
        if kill is Kill.DEADLINE:
            self.fault_class = "hang"
            self._dead_since_s = self.process.view().beat_s

    # ---- deadlines

    def overdue(self, *, late: bool) -> str:
        """What took too long, at the second tick in a row that finds it so."""
        phase = self._phase_past()
        self._num_overdue = self._num_overdue + 1 if phase and not late else 0
        return phase if self._num_overdue >= TICKS_OVERDUE else ""

    def outlives_kill(self) -> bool:
        """SIGKILL has no effect: uninterruptible sleep (S38). A fork has its own."""
        has_process = self.process.pid is not None
        until_s = self._killed_s + self._deadlines.kill_s
        return has_process and self._clock() > until_s

    def forked_after_kill(self) -> None:
        """It was killed before it was there; its time to die begins now."""
        self._killed_s = self._clock()

    def _phase_past(self) -> str:
        now_s = self._clock()
        if self._until_s and now_s > self._until_s:
            return "boot" if self.hello is None else "reload"
        view = self.process.view()
        if view.phase is Phase.IDLE and now_s - view.beat_s > _STILL_S:
            return "a turn of its idle loop"
        if not view.deadline_s or now_s <= view.deadline_s:
            return ""
        return Phase(view.phase).name.lower()

    # ---- its end

    def dead_since_s(self) -> float:
        """When it last moved, if it stood still; else now."""
        return self._dead_since_s or self._clock()

    def ending(self, end: Exit | None) -> Ending:
        """`end` None: it was written off."""
        last = self.process.view()
        return Ending(
            exit=end,
            phase=last.phase,
            requests=last.requests,
            fault=self.fault,
            killed=self.killed,
            num_oom_kills=self._senses.oom_kills() - self._oom_kills,
            is_excused=self.is_excused,
        )

    def is_productive(self) -> bool:
        """It gave something that can be believed."""
        return has_given(self.process.view()) and not self.is_wrong

    @property
    def is_ordered(self) -> bool:
        """An operator ended it: no failure of the device's."""
        return self.killed is Kill.ORDER
