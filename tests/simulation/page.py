"""A status page without shared memory: what was written is what is read.

As `StatusWriter` and, by `read`, as `StatusReader`; layout and damage have tests of
their own, and thousands of real pages take most of a simulation's time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ipc.status import (
    BOUNDS_S,
    COUNTERS,
    GAUGES,
    SERIES,
    Buckets,
    ModelFigures,
    ModelRow,
    PageView,
    Phase,
)

_NO_FIGURES = ModelFigures()
_NOTHING = {name: Buckets((0,) * (len(BOUNDS_S) + 1), 0.0) for name in SERIES}


class Page:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._phase = Phase.BOOT
        self._since_s = clock()
        self._deadline_s = 0.0
        self._requests: tuple[int, ...] = ()
        self._beat_s = 0.0
        self._steps = 0
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._gauges = dict.fromkeys(GAUGES, 0)
        self._models: dict[int, ModelRow] = {}

    def arm(
        self, phase: Phase, deadline_s: float, requests: Sequence[int] = ()
    ) -> None:
        self._phase, self._since_s = phase, self._clock()
        self._deadline_s = self._since_s + deadline_s if deadline_s > 0 else 0.0
        self._requests = tuple(requests)
        self._beat_s = self._since_s

    def idle(self) -> None:
        if self._phase is Phase.IDLE:
            self._beat_s = self._clock()
        else:
            self.arm(Phase.IDLE, 0)

    def step(self) -> None:
        self._steps += 1
        self._counters["steps_total"] += 1
        self._beat_s = self._clock()

    def add(self, counter: str, n: int = 1) -> None:
        self._counters[counter] += n

    def set(self, gauge: str, value: int) -> None:
        self._gauges[gauge] = value

    def observe(self, series: str, seconds: float) -> None:
        pass

    def model(  # noqa: PLR0913  a row's fields
        self,
        slot: int,
        name: str,
        running: int,
        queued: int,
        last_used_s: float,
        figures: ModelFigures = _NO_FIGURES,
    ) -> None:
        row = ModelRow(slot, name, running, queued, last_used_s, figures)
        self._models[slot] = row

    def drop_model(self, slot: int) -> None:
        self._models.pop(slot, None)

    def close(self) -> None:
        pass

    def read(self) -> PageView:
        return PageView(
            phase=self._phase,
            since_s=self._since_s,
            deadline_s=self._deadline_s,
            beat_s=self._beat_s,
            steps=self._steps,
            requests=self._requests,
            counters=self._counters,
            gauges=self._gauges,
            series=_NOTHING,
            models=list(self._models.values()),
        )
