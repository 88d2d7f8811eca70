"""What is known against a device: Xids, ends of lives and recovery actions, joined.

Supervisor; pure, one `Evidence` per device. Three sources speak, in any order and up
to seconds apart: last words of a process, NVML, the kernel's log. They are joined by
device and generation in a window of 5 s.

    sighting ─▶ whose? ─▶ row of `xids` ─▶ worse than what this life has? ─▶ Verdict
    end of a life ─▶ who is spared: what came up to 5 s before or after it

Invariants: what was decided for a life is never downgraded, a device that is out stays
out until an operator says that its cure is done; an echo or a foreign process never
ends a life; hardware never charges a request.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from neurond import xids
from neurond.sightings import AGAIN_S, WINDOW_S, Sightings, row_name
from neurond.xids import Cure, Measure, Sighting, Xid, XidClass

OUR_KILL_S = 30.0
"""So long after our SIGKILL, a clean-up is its echo."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a sighting leads to; WATCH = it is shown.

    `generation`: the life that it is about. `spares`: nobody is to pay for the end of
    that life, also when it is over. `is_news`: an operator should hear of it.
    """

    measure: Measure
    generation: int
    reason: str
    kind: XidClass
    cure: Cure = Cure.NONE
    spares: bool = False
    is_news: bool = True


@dataclass(slots=True)
class _Life:
    """`worst` only grows; `spared_s`: when something that charges nobody was seen."""

    generation: int
    pid: int | None = None
    died_s: float | None = None
    worst: tuple[Measure, Cure] = (Measure.WATCH, Cure.NONE)
    spared_s: float | None = None
    spared_by: str = ""

    def is_over(self) -> bool:
        return self.died_s is not None


@dataclass(slots=True)
class Evidence:
    """Of one device. Times are one clock's, in seconds. `is_grouped`: it is a rank."""

    is_grouped: bool = False
    cure: Cure = Cure.NONE
    is_out: bool = False
    is_draining: bool = False
    cure_wanted: Cure = Cure.NONE
    sightings: Sightings = field(default_factory=Sightings)
    _lives: deque[_Life] = field(default_factory=lambda: deque(maxlen=4))
    _killed_s: float | None = None
    _recovery: int = 0
    _faults: deque[tuple[float, frozenset[int]]] = field(
        default_factory=lambda: deque(maxlen=2)
    )

    # ---- what happens to its lives

    def born(self, generation: int, pid: int | None = None) -> None:
        """A life begins, or its process became known."""
        if self._lives and self._lives[-1].generation == generation:
            self._lives[-1].pid = pid
        else:
            self._lives.append(_Life(generation, pid))

    def killed(self, at_s: float) -> None:
        """We sent SIGKILL."""
        self._killed_s = at_s

    def died(self, generation: int, at_s: float) -> None:
        life = self._life(generation)
        if life is not None and not life.is_over():
            life.died_s = at_s

    def cured(self) -> None:
        """An operator did what was asked: a clean record."""
        self.cure = self.cure_wanted = Cure.NONE
        self.is_out = self.is_draining = False
        self._recovery = 0
        self.sightings.forget()
        self._faults.clear()
        for life in self._lives:
            life.worst = (Measure.WATCH, Cure.NONE)

    # ---- what is seen

    def saw(self, sighting: Sighting, at_s: float) -> Verdict | None:
        """None: the echo of what we did."""
        if self._is_our_echo(sighting, at_s):
            return None
        row = xids.row(sighting.xid)
        is_news = self.sightings.note(sighting.xid, at_s)
        life = self._concerned(sighting, at_s)
        is_ours = life is not None or row.whole_gpu
        if row.spares and (is_ours or sighting.pid is None):
            self._spare(life, sighting, row, at_s)
        if not is_ours:
            reason = f"{row_name(sighting.xid)}, of another process"
            return Verdict(Measure.WATCH, 0, reason, row.kind, is_news=is_news)
        found = self.sightings.weigh(sighting, at_s, is_grouped=self.is_grouped)
        reason = row_name(sighting.xid)
        verdict = self._decide(life or self._present(), row.kind, found, reason)
        return replace(verdict, spares=row.spares, is_news=is_news)

    def recovery(self, action: int) -> Verdict | None:
        """The driver's recovery action as read; None: nothing new."""
        if action == self._recovery:
            return None
        self._recovery = action
        found = xids.recovery(action)
        reason = f"the driver's recovery action is {action}"
        return self._decide(self._present(), XidClass.RECOVERY, found, reason)

    def faulted(self, requests: frozenset[int], at_s: float) -> bool:
        """An application's fault in a step; True: the second within an hour, and none
        of the requests was there both times, so it is hardly theirs."""
        before = [ids for s, ids in self._faults if at_s - s <= AGAIN_S]
        self._faults.append((at_s, requests))
        return bool(requests) and any(ids and not ids & requests for ids in before)

    def spares(self, generation: int, at_s: float) -> str:
        """Why nobody pays for the end of that life; empty: whoever ran may have to."""
        life = self._life(generation)
        if life is None or life.spared_s is None:
            return ""
        end_s = at_s if life.died_s is None else life.died_s
        return life.spared_by if abs(end_s - life.spared_s) <= WINDOW_S else ""

    def _spare(
        self, life: _Life | None, sighting: Sighting, row: Xid, at_s: float
    ) -> None:
        """Whose it was is not always told: then everyone whom it may have hit."""
        is_exact = life is not None and sighting.pid is not None and not row.whole_gpu
        for one in [life] if life is not None and is_exact else self._lives:
            if one.died_s is None or at_s - one.died_s <= WINDOW_S:
                one.spared_s, one.spared_by = at_s, row_name(sighting.xid)

    # ---- whose it is

    def _concerned(self, sighting: Sighting, at_s: float) -> _Life | None:
        """The life that a sighting is about; None: not ours, or nobody can tell."""
        if sighting.pid is not None:
            return next((x for x in self._lives if x.pid == sighting.pid), None)
        if sighting.others:
            return None
        for life in self._lives:  # of a dead one rather than of its successor
            if life.died_s is not None and at_s - life.died_s <= WINDOW_S:
                return life
        return self._present()

    def _present(self) -> _Life | None:
        if self._lives and not self._lives[-1].is_over():
            return self._lives[-1]
        return None

    def _life(self, generation: int) -> _Life | None:
        return next((x for x in self._lives if x.generation == generation), None)

    def _is_our_echo(self, sighting: Sighting, at_s: float) -> bool:
        if sighting.xid != xids.CLEAN_UP or self._killed_s is None:
            return False
        return at_s - self._killed_s <= OUR_KILL_S

    # ---- what follows

    def _decide(
        self,
        life: _Life | None,
        kind: XidClass,
        found: tuple[Measure, Cure],
        reason: str,
    ) -> Verdict:
        measure, cure = found
        acts = (
            self._goes(found)
            if measure >= Measure.DRAIN_OUT
            else self._ends(life, found)
        )
        self.cure_wanted = max(self.cure_wanted, cure)
        if life is not None:
            life.worst = max(life.worst, found)
        generation = life.generation if life is not None else 0
        shown = max(self.cure, cure)
        return Verdict(
            measure if acts else Measure.WATCH, generation, reason, kind, shown
        )

    def _ends(self, life: _Life | None, found: tuple[Measure, Cure]) -> bool:
        """Whether a life is to end that hasn't, for something worse than before."""
        if found[0] is Measure.WATCH or self.is_out or life is None or life.is_over():
            return False
        return found > life.worst

    def _goes(self, found: tuple[Measure, Cure]) -> bool:
        """Whether a device is to go that hasn't, or needs a harder cure than known."""
        measure, cure = found
        is_new = not self.is_out and not (measure < Measure.OUT and self.is_draining)
        is_harder = cure > self.cure
        self.cure = max(self.cure, cure)
        if measure is Measure.OUT:
            self.is_out = True
        else:
            self.is_draining = True
        return is_new or is_harder
