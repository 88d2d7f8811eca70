"""Seats and the pages that go with them: KV first, then a seat (S27).

Device process, torch-free. Fills free seats from the queue, and finds the pages that
the next forward writes to; where there is none left somebody gives way and is computed
again later, which costs time and nothing else.

Invariants: a sequence with a seat has the pages of all its ids but those still to be
drawn; the one that came first is never made to give way, so somebody always ends.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing

from ipc.errors import ServiceError
from ipc.status import StatusWriter
from neurond.device.backend import Backend, Work
from neurond.device.budget import Lack
from neurond.device.intake import too_long
from neurond.device.kvcache import KvCache
from neurond.device.roster import Roster
from neurond.device.scheduler import computes_for, is_due, next_seat, victim
from neurond.device.sequence import Sequence

_HOLD_S = 30.0
"""How long a sequence waits for another to compute the prompt they share."""
_HOLD_PAGES = 2

Ended = list[tuple[Sequence, ServiceError | str]]
"""Who can't go on: the error, or the reason of its finish."""


class Seats:
    def __init__(
        self,
        backend: Backend,
        kv: KvCache,
        roster: Roster,
        page: StatusWriter,
        *,
        max_running: int,
    ) -> None:
        self._backend = backend
        self._kv = kv
        self._roster = roster
        self._max_running = max_running
        self._page = page

    def fill(self, now_s: float) -> Ended:
        """Seat whoever's turn it is. Returns those for whom there is no room at all."""
        ended: Ended = []
        roster = self._roster
        if len(roster.running) >= self._max_running:
            return ended
        passed = {s for s in roster.waiting if self._is_still_held(s, now_s)}
        while roster.waiting and len(roster.running) < self._max_running:
            free = [s for s in roster.waiting if s.accepted and s not in passed]
            sequence = next_seat(free, roster.running)
            if sequence is None:
                break
            passed.add(sequence)
            if self._is_held(sequence, now_s):
                continue
            lack = self._kv.admit(sequence)
            if lack is None:
                self._seat(sequence)
            elif not roster.running:
                window = self._kv.window(sequence.model)
                ended.append((sequence, too_long(sequence.submit, window)))
            elif lack is Lack.PAGES:
                passed |= {s for s in free if s.model is sequence.model}
            else:
                break
        return ended

    def secure(self, works: Listing[Work]) -> tuple[list[Work], Ended]:
        """Pages for what the works write, the oldest first.

        Returns the works that can be computed now.
        """
        ended: Ended = []
        for work in sorted(works, key=lambda w: w.sequence.arrived_s):
            reason = self._secure(work) if self._runs(work) else None
            if reason:
                ended.append((work.sequence, reason))
        out = {sequence for sequence, _ in ended}
        left = [work for work in works if work.sequence not in out]
        return [work for work in left if self._runs(work)], ended

    def preempt(self, sequence: Sequence) -> None:
        """Take pages and seat; what is computed stays in the store while there is
        room."""
        self._kv.publish(sequence, tail=True)
        self._backend.release(sequence)
        self._kv.release(sequence)
        self._roster.unseat(sequence)
        sequence.num_preempted += 1
        self._page.add("preempted_total")

    def _seat(self, sequence: Sequence) -> None:
        self._roster.seat(sequence)
        if sequence.num_preempted == 0:
            cached = min(sequence.num_computed, sequence.submit.num_prompt)
            sequence.num_cached = cached
            self._page.add("cached_tokens_total", cached)

    def _is_held(self, sequence: Sequence, now_s: float) -> bool:
        """Another computes a good part of its prompt right now: wait, and share it."""
        if not self._kv.reuses(sequence) or now_s > sequence.held_until_s:
            return False
        running = self._roster.running
        gains = [computes_for(sequence, other) for other in running]
        gain = max(gains, default=0)
        worth = _HOLD_PAGES * sequence.model.cache.page_tokens
        if gain < (1 if sequence.was_held else worth):
            return False
        other = running[gains.index(gain)]
        sequence.held_by, sequence.held_common = other, other.num_computed + gain
        sequence.held_until_s = min(sequence.held_until_s, now_s + _HOLD_S)
        return True

    def _is_still_held(self, sequence: Sequence, now_s: float) -> bool:
        """By the same one: every step asks, so no ids are compared."""
        other = sequence.held_by
        if other is None:
            return False
        runs = other in self._roster.running and now_s <= sequence.held_until_s
        if runs and is_due(sequence.held_common, other):
            return True
        sequence.held_by = None
        return False

    def _runs(self, work: Work) -> bool:
        """It didn't give way to another work of the step."""
        return work.sequence in self._roster.running

    def _secure(self, work: Work) -> str | None:
        """ "" when the pages are there, None when it gave way, else how it ends."""
        sequence = work.sequence
        while (lack := self._kv.grow(sequence, work.num_ids)) is not None:
            running = self._roster.running
            if lack is Lack.PAGES:
                running = self._roster.of(sequence.model)
            loser = victim(running)
            if loser is None:
                if not self._kv.has_idle:
                    return "length"  # it has all that there is
                loser = sequence  # its twin left pages, which it pins while it runs
            self.preempt(loser)
            if loser is sequence:
                return None
        return ""
