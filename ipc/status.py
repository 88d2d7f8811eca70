"""The status page: what a device is doing, readable while it hangs or after it died.

Memory of the supervisor, one page per device life (layout: `ipc.page`). The device's
loop writes it, never a side thread, so that a stuck step looks stuck; the supervisor
reads it at every tick and kills when an armed deadline is past. Times are
CLOCK_MONOTONIC, which processes share.

    device     arm(DECODE, 30 s, ids) ── step … ── step() ── idle() ── arm(…)
    page       phase · since · deadline · request ids · beat · counters · models
    supervisor read() → PageView

Invariant: damage reads as no news: the last good phase and its deadline stay in force,
so a device that scribbled over its page is killed in time. Nothing here raises for what
a page holds, and nothing here waits.
"""

from __future__ import annotations

import math
import os
import struct
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from ipc.latch import Latch
from ipc.page import (
    ARMED,
    BOUNDS_S,
    COUNTER,
    COUNTERS,
    GAUGE,
    GAUGES,
    MAX_MODELS,
    MAX_REQUESTS,
    MODEL,
    NAME_BYTES,
    SERIES,
    SERIES_START,
    SERIES_WORDS,
    BadPage,
    Page,
    create_page,
)

__all__ = [
    "BOUNDS_S",
    "COUNTERS",
    "GAUGES",
    "SERIES",
    "BadPage",
    "Buckets",
    "ModelFigures",
    "ModelRow",
    "PageView",
    "Phase",
    "StatusReader",
    "StatusWriter",
    "create_page",
]

_U64 = (1 << 64) - 1


class Phase(IntEnum):
    """What the device's loop is inside of."""

    BOOT = 0
    CONTEXT = 1
    IDLE = 2
    LOAD = 3
    WARMUP = 4
    PROBE = 5
    PREFILL = 6
    DECODE = 7
    STOPPING = 8
    GROUP_INIT = 9
    PACK = 10
    CAPTURE = 11
    TRIAL = 12  # a step of suspects alone


@dataclass(frozen=True, slots=True)
class Buckets:
    """Observations by size: `counts[i]` up to `bounds_s[i]`, the last one the rest."""

    counts: tuple[int, ...]
    sum_s: float
    bounds_s: tuple[float, ...] = BOUNDS_S


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """Measured: prompt tokens computed a second, tokens a second of one stream (0.0 =
    not yet); bytes of KV that requests hold, and that the prefix store holds alone."""

    prefill_tokens_s: float = 0.0
    decode_tokens_s: float = 0.0
    kv_used_bytes: int = 0
    kv_cached_bytes: int = 0


_NO_FIGURES = ModelFigures()


@dataclass(frozen=True, slots=True)
class ModelRow:
    """`last_used_s` is unix time, 0 = never."""

    slot: int
    name: str
    running: int
    queued: int
    last_used_s: float
    figures: ModelFigures = _NO_FIGURES


@dataclass(frozen=True, slots=True)
class PageView:
    """The page at one moment; `deadline_s` is a CLOCK_MONOTONIC time, 0 = none."""

    phase: Phase
    since_s: float
    deadline_s: float
    beat_s: float
    steps: int
    requests: tuple[int, ...]
    counters: dict[str, int]
    gauges: dict[str, int]
    series: dict[str, Buckets]
    models: list[ModelRow]


class StatusWriter:
    """The device's end; takes the descriptor over. Once made, no call of it fails."""

    def __init__(self, fd: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises BadPage."""
        self._clock = clock
        try:
            self._page = Page(fd, writable=True)
        finally:
            os.close(fd)
        self._phase = Phase.BOOT

    def arm(
        self, phase: Phase, deadline_s: float, requests: Sequence[int] = ()
    ) -> None:
        """A phase begins that must end within `deadline_s` from now (0 = no limit)."""
        now_s = self._clock()
        until_s = now_s + deadline_s if deadline_s > 0 else 0.0
        ids = [number & _U64 for number in requests[:MAX_REQUESTS]]
        head = ARMED.pack(phase, now_s, until_s)
        self._page.armed.write(head + struct.pack(f"<{len(ids)}Q", *ids))
        self._page.beat[0] = now_s
        self._phase = phase

    def idle(self) -> None:
        """Nothing to do, nothing to be late with; called at every idle turn."""
        if self._phase is Phase.IDLE:
            self._page.beat[0] = self._clock()
        else:
            self.arm(Phase.IDLE, 0)

    def step(self) -> None:
        """A step was done."""
        self._page.steps[0] += 1
        self._page.unsigned[COUNTER["steps_total"]] += 1
        self._page.beat[0] = self._clock()

    def add(self, counter: str, n: int = 1) -> None:
        words = self._page.unsigned
        index = COUNTER[counter]
        words[index] = (words[index] + n) & _U64

    def set(self, gauge: str, value: int) -> None:
        self._page.signed[GAUGE[gauge]] = value

    def observe(self, series: str, seconds: float) -> None:
        start = SERIES_START[series]
        self._page.floats[start] += seconds
        self._page.unsigned[start + 1 + bisect_left(BOUNDS_S, seconds)] += 1

    def model(  # noqa: PLR0913  a row's fields
        self,
        slot: int,
        name: str,
        running: int,
        queued: int,
        last_used_s: float,
        figures: ModelFigures = _NO_FIGURES,
    ) -> None:
        """Show a model; one beyond the page's slots is not shown."""
        if slot < MAX_MODELS:
            head = MODEL.pack(
                running,
                queued,
                last_used_s,
                figures.prefill_tokens_s,
                figures.decode_tokens_s,
                figures.kv_used_bytes & _U64,
                figures.kv_cached_bytes & _U64,
            )
            short = name.encode(errors="replace")[:NAME_BYTES]
            self._page.models[slot].write(head + short)

    def drop_model(self, slot: int) -> None:
        if slot < MAX_MODELS:
            self._page.models[slot].write(b"")

    def close(self) -> None:
        self._page.close()


class StatusReader:
    """The supervisor's end; the descriptor stays the caller's, who hands it on."""

    def __init__(self, fd: int) -> None:
        """Raises BadPage."""
        self._page = Page(fd, writable=False)
        self._armed: _Armed = (Phase.BOOT, time.monotonic(), 0.0, ())

    def read(self) -> PageView:
        page = self._page
        self._armed = _armed(page.armed.read()) or self._armed
        phase, since_s, deadline_s, requests = self._armed
        return PageView(
            phase=phase,
            since_s=since_s,
            deadline_s=deadline_s,
            beat_s=_finite(page.beat[0]),
            steps=page.steps[0],
            requests=requests,
            counters={name: page.unsigned[at] for name, at in COUNTER.items()},
            gauges={name: page.signed[at] for name, at in GAUGE.items()},
            series={name: self._buckets(at) for name, at in SERIES_START.items()},
            models=self._read_models(),
        )

    def close(self) -> None:
        self._page.close()

    def _buckets(self, start: int) -> Buckets:
        counts = self._page.unsigned[start + 1 : start + SERIES_WORDS]
        return Buckets(tuple(counts), _finite(self._page.floats[start]))

    def _read_models(self) -> list[ModelRow]:
        rows = [_model(slot, latch) for slot, latch in enumerate(self._page.models)]
        return [row for row in rows if row is not None]


_Armed = tuple[Phase, float, float, tuple[int, ...]]


def _armed(record: bytes | None) -> _Armed | None:
    """What was armed; None when the record makes no sense."""
    if record is None or len(record) < ARMED.size:
        return None
    phase, since_s, deadline_s = ARMED.unpack_from(record)
    if phase not in _PHASES or not math.isfinite(since_s + deadline_s):
        return None
    num_requests = (len(record) - ARMED.size) // 8
    requests = struct.unpack_from(f"<{num_requests}Q", record, ARMED.size)
    return Phase(phase), since_s, deadline_s, requests


def _model(slot: int, latch: Latch) -> ModelRow | None:
    record = latch.read()
    if record is None or len(record) < MODEL.size:
        return None  # no model here, or dropped
    running, queued, last_used_s, prefill, decode, used, cached = MODEL.unpack_from(
        record
    )
    name = record[MODEL.size :].decode(errors="replace")
    figures = ModelFigures(_finite(prefill), _finite(decode), used, cached)
    return ModelRow(slot, name, running, queued, _finite(last_used_s), figures)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


_PHASES = frozenset(Phase)
