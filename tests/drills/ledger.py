"""The ledger of a drill: what was asked for, and what became of each request.

Every request is submitted once and booked once:

    complete     whole, and what it is in peace ("other": whole, with another text,
                 which only fast numerics may give)
    explained    an error that a fault of the drill was to cause, as often as it could
    left         the client went first
    violation    everything else: lost, cut, hung, mixed, repeated

A refusal with Retry-After, as there are while a device is away, is taken at its word:
the same request is sent again.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.drills.asks import FORCED
from tests.drills.caller import Answer, Leave, call
from tests.drills.judge import Wrong, difference, judge
from tests.drills.traffic import Ask

STAY = Leave()
AWAY = ("model_recovering", "model_loading", "no_healthy_node", "overloaded")
"""Codes of a device on its way back, to whom has not been accepted."""

_PAUSE_S = 0.05
_LEAVE_SHARE = 0.1
_FORCED = ("forced",)


@dataclass
class Books:
    """What was written down; `violations` must be empty."""

    submitted: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    explained: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    longest_s: float = 0.0

    @property
    def bad(self) -> list[str]:
        booked = self.ends.total()
        if booked == self.submitted:
            return self.violations
        return [f"{self.submitted} submitted, {booked} booked", *self.violations]

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {end}" for end, count in self.ends.most_common())
        told = ", ".join(f"{n} {code}" for code, n in self.explained.most_common())
        again = ", ".join(f"{n} {code}" for code, n in self.refusals.most_common())
        return (
            f"{self.submitted} submitted: {ends}; explained: {told or 'none'};"
            f" refused and asked again: {again or 'none'};"
            f" longest {self.longest_s:.1f} s"
        )


class Ledger:
    """Owns the clients. `num_events` is the clock that faults go by: events of all
    streams together."""

    def __init__(
        self, address: tuple[str, int], asks: Sequence[Ask], *, is_exact: bool
    ) -> None:
        self.books = Books()
        self.num_events = 0
        self.allowed: Counter[str] = Counter()
        self.workers_died_s: list[float] = []
        self._address = address
        self._asks = asks
        self._open: dict[int, tuple[str, float]] = {}
        self._is_exact = is_exact
        self._wanted: list[Any] = []
        self._stop = asyncio.Event()

    async def rehearse(self, *, obeys: bool) -> None:
        """Each alone and in peace; `obeys`: grammars bind the model. Raises Wrong where
        that fails already."""
        for ask in self._asks:
            answer = await call(*self._address, ask, STAY)
            end, outcome = judge(ask, answer, obeys=False)
            is_forced = obeys and ask.kind in _FORCED
            if end != "complete" or (is_forced and not _fits(outcome)):
                raise Wrong(f"{ask.kind} in peace: {end} {answer}")
            self._wanted.append(outcome)

    async def work(self, clients: int, seed: int) -> None:
        """Until `stop`; then each client ends the request that it has."""
        self._stop.clear()
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._client(random.Random(f"{seed}-{number}")))

    def stop(self) -> None:
        self._stop.set()

    @property
    def open(self) -> str:
        """Who waits now, and since when."""
        now_s = time.monotonic()
        told = (f"{kind} {now_s - at_s:.1f} s" for kind, at_s in self._open.values())
        return ", ".join(told)

    async def _client(self, rng: random.Random) -> None:
        while not self._stop.is_set():
            await self.one(rng.randrange(len(self._asks)), _leaving(rng))

    async def one(self, index: int, leave: Leave = STAY) -> None:
        """Submitted and booked, whatever becomes of it."""
        books, begun_s = self.books, time.monotonic()
        books.submitted += 1
        number = books.submitted
        self._open[number] = self._asks[index].kind, begun_s
        try:
            end = await self._asked(index, leave, begun_s)
        except Wrong as wrong:
            end = self._violation(index, str(wrong))
        except TimeoutError:
            end = self._violation(index, "hung")
        except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
            end = self._violation(index, f"no answer: {error!r}")
        del self._open[number]
        books.ends[end] += 1
        books.longest_s = max(books.longest_s, time.monotonic() - begun_s)

    async def _asked(self, index: int, leave: Leave, begun_s: float) -> str:
        ask = self._asks[index]
        answer = await call(*self._address, ask, leave, self._tick)
        while not answer.has_left and (code := _refusal(answer)):
            self.books.refusals[code] += 1
            await asyncio.sleep(_PAUSE_S)
            answer = await call(*self._address, ask, leave, self._tick)
        code = "" if answer.has_left else error_code(answer)
        if code and self._explains(code, begun_s):
            self.books.explained[code] += 1
            return "explained"
        end, outcome = judge(ask, answer, obeys=False)
        if end != "complete":
            return end
        return self._compared(ask, self._wanted[index], outcome)

    def _compared(self, ask: Ask, wanted: Any, outcome: Any) -> str:
        if ask.kind in _FORCED and not self._is_exact:
            wanted, outcome = _texts(wanted), _texts(outcome)
        parts = difference(wanted, outcome, 0.0)
        if not parts:
            return "complete"
        if self._is_exact or ask.kind in _FORCED:
            raise Wrong(f"another answer than in peace: {parts}")
        return "other"

    def _explains(self, code: str, begun_s: float) -> bool:
        """A worker's death takes its clients' streams; a fault of a request's own was
        ordered so many times."""
        if self.allowed[code] > 0:
            self.allowed[code] -= 1
            return True
        is_worker = any(begun_s <= at_s for at_s in self.workers_died_s)
        return is_worker and code in ("bad_gateway", "device_fault")

    def _violation(self, index: int, what: str) -> str:
        ask = self._asks[index]
        body = json.dumps(ask.body)
        told = f"{ask.kind}: {what[:600]}\n    POST {ask.path} {body[:300]}"
        self.books.violations.append(told)
        return "violation"

    def _tick(self) -> None:
        self.num_events += 1


def error_code(answer: Answer) -> str:
    """What an answer or its last event says is wrong; "" when nothing is."""
    if answer.status != 200:
        return str(answer.document["error"]["code"])
    last = answer.events[-1] if answer.events else None
    if isinstance(last, dict) and "error" in last:
        return str(last["error"]["code"])
    return ""


def _refusal(answer: Answer) -> str:
    if answer.status not in (429, 503) or "retry-after" not in answer.headers:
        return ""
    code = error_code(answer)
    return code if code in AWAY else ""


def _leaving(rng: random.Random) -> Leave:
    if rng.random() >= _LEAVE_SHARE:
        return STAY
    if rng.random() < 0.5:
        return Leave(after_events=rng.randrange(12))
    return Leave(after_s=rng.expovariate(1 / 0.1))


def _fits(outcome: Any) -> bool:
    return re.fullmatch(FORCED, _texts(outcome)[0][0]) is not None


def _texts(outcome: Any) -> Any:
    told, _tokens = outcome
    return [voice[:3] for voice in told]
