"""How long a device was away, part by part, and how long it was in each state.

Supervisor; one clock per device, CLOCK_MONOTONIC. The parts follow each other:

    died ─detect─▶ known ─memory─▶ bytes back ─respawn─▶ hello ─reload─▶ up
         ─first token─▶ emitted

`respawn` has the pause before a new life in it. A death on the way begins anew.

Invariant: a part is counted once, when it ends, and never without the ones before it.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from ipc.status import BOUNDS_S
from neurond.states import DeviceState


class Part(IntEnum):
    DETECT = 0
    MEMORY = 1
    RESPAWN = 2
    RELOAD = 3
    FIRST_TOKEN = 4

    @property
    def key(self) -> str:
        return f"{self.name.lower()}_s"


class RecoveryClock:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: Part | None = None
        self._last_s = 0.0
        self._parts: dict[Part, float] = {}
        self._sums_s = dict.fromkeys(Part, 0.0)
        self._counts = {part: [0] * (len(BOUNDS_S) + 1) for part in Part}

    def died(self, at_s: float) -> None:
        """It stood still or was gone since `at_s`, and now that is known."""
        self._due, self._last_s, self._parts = Part.DETECT, at_s, {}
        self.reached(Part.DETECT)

    def reached(self, part: Part) -> None:
        """This part is over; nothing unless it is the one under way."""
        if part is not self._due:
            return
        now_s = self._clock()
        took_s = max(0.0, now_s - self._last_s)
        self._parts[part] = took_s
        self._sums_s[part] += took_s
        self._counts[part][bisect_left(BOUNDS_S, took_s)] += 1
        self._last_s = now_s
        is_last = part is Part.FIRST_TOKEN
        self._due = None if is_last else Part(part + 1)

    @property
    def awaits_token(self) -> bool:
        return self._due is Part.FIRST_TOKEN

    def facts(self) -> dict[str, float | None] | None:
        """Of the last recovery; a part that has not ended is null."""
        if not self._parts:
            return None
        return {part.key: self._parts.get(part) for part in Part}

    def series(self) -> dict[str, dict[str, Any]]:
        """{part: {bounds, counts, sum}}, seconds."""
        return {
            part.name.lower(): {
                "bounds": list(BOUNDS_S),
                "counts": list(self._counts[part]),
                "sum": self._sums_s[part],
            }
            for part in Part
        }


class StateClock:
    """Seconds in each state, over all lives."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._totals_s = dict.fromkeys(DeviceState, 0.0)
        self._state = DeviceState.ABSENT
        self._since_s = clock()

    def enter(self, state: DeviceState) -> None:
        now_s = self._clock()
        self._totals_s[self._state] += now_s - self._since_s
        self._state, self._since_s = state, now_s

    def totals_s(self) -> dict[str, float]:
        here_s = self._clock() - self._since_s
        totals = dict(self._totals_s)
        totals[self._state] += here_s
        return {str(state): seconds for state, seconds in totals.items()}
