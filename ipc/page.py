"""Layout of the status page and its mapping; `ipc.status` gives it meaning.

Used by supervisors and devices. Places, in bytes; every word is aligned, so that none
is ever read half written:

    0      u64 magic · u64 layout version
    64     f64 beat_s · u64 steps
    128    u64 counters[] · i64 gauges[] · per series: f64 sum_s, u64 counts[]
    …      latch: u64 phase · f64 since_s · f64 deadline_s · u64 request ids[]
    …      latch per model: u64 running · u64 queued · f64 last_used_s ·
           f64 prefill_tokens_s · f64 decode_tokens_s · u64 kv_used_bytes ·
           u64 kv_cached_bytes · name

Invariant: names, sizes and places are fixed here for both sides; a change of any moves
the layout version.
"""

from __future__ import annotations

import mmap
import struct

from ipc import memory
from ipc.latch import Latch

COUNTERS = (
    "requests_total",
    "requests_finished_total",
    "requests_failed_total",
    "requests_cancelled_total",
    "prompt_tokens_total",
    "emitted_tokens_total",
    "cached_tokens_total",
    "nan_total",
    "steps_total",
    "ring_full_total",
    "computed_tokens_total",
    "preempted_total",
    "out_of_memory_total",
    "grammar_errors_total",
)
GAUGES = (
    "running",
    "waiting",
    "kv_used_bytes",
    "kv_budget_bytes",
    "kv_cached_bytes",
    "memory_free_bytes",
    "memory_resident_bytes",
)
SERIES = ("step_seconds", "prefill_seconds")
BOUNDS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
    *(0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Upper edges of the buckets; one more takes the rest."""

MAX_MODELS = 64
MAX_REQUESTS = 1024
"""Of the step in flight; a step with more names the first of them."""

_MAGIC = 0x6567_6170_7874_7263  # "crtxpage"
_VERSION = 2
_HEADER = struct.Struct("<QQ")
ARMED = struct.Struct("<Qdd")
MODEL = struct.Struct("<QQdddQQ")
NAME_BYTES = 256

_WORDS = 128
_GAUGE_AT = len(COUNTERS)
_SERIES_AT = _GAUGE_AT + len(GAUGES)
SERIES_WORDS = 2 + len(BOUNDS_S)
_NUM_WORDS = _SERIES_AT + len(SERIES) * SERIES_WORDS
_ARMED_BYTES = ARMED.size + 8 * MAX_REQUESTS
_ARMED_AT = -(-(_WORDS + 8 * _NUM_WORDS) // 64) * 64
_MODELS_AT = _ARMED_AT + Latch.size_bytes(_ARMED_BYTES)
_MODEL_BYTES = MODEL.size + NAME_BYTES
_MODEL_CELL = Latch.size_bytes(_MODEL_BYTES)
PAGE_BYTES = _MODELS_AT + MAX_MODELS * _MODEL_CELL

COUNTER = {name: index for index, name in enumerate(COUNTERS)}
GAUGE = {name: _GAUGE_AT + index for index, name in enumerate(GAUGES)}
SERIES_START = {name: _SERIES_AT + i * SERIES_WORDS for i, name in enumerate(SERIES)}


class BadPage(Exception):
    """The descriptor is no status page of this layout."""


def create_page() -> int:
    """The descriptor of a new page: sealed, allocated, phase BOOT without deadline."""
    fd = memory.create(PAGE_BYTES, sealed=True)
    with mmap.mmap(fd, PAGE_BYTES) as page:
        page[: _HEADER.size] = _HEADER.pack(_MAGIC, _VERSION)
    return fd


class Page:
    """The mapping and its places."""

    def __init__(self, fd: int, *, writable: bool) -> None:
        """Maps the page; `fd` stays the caller's. Raises BadPage."""
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        mapping = self._mapping = _map(fd, prot)
        view = memoryview(mapping)
        self._all = view
        self.beat = view[64:72].cast("d")
        self.steps = view[72:80].cast("Q")
        words = view[_WORDS : _WORDS + 8 * _NUM_WORDS]
        self.unsigned = words.cast("Q")
        self.signed = words.cast("q")
        self.floats = words.cast("d")
        self.armed = Latch(view[_ARMED_AT:_MODELS_AT], capacity_bytes=_ARMED_BYTES)
        self.models = [self._model(slot) for slot in range(MAX_MODELS)]

    def _model(self, slot: int) -> Latch:
        start = _MODELS_AT + slot * _MODEL_CELL
        cell = self._all[start : start + _MODEL_CELL]
        return Latch(cell, capacity_bytes=_MODEL_BYTES)

    def close(self) -> None:
        for latch in (self.armed, *self.models):
            latch.release()
        words = (self.unsigned, self.signed, self.floats)
        for view in (self.beat, self.steps, *words, self._all):
            view.release()
        self._mapping.close()


def _map(fd: int, prot: int) -> mmap.mmap:
    try:
        mapping = mmap.mmap(fd, PAGE_BYTES, prot=prot)
    except (ValueError, OSError) as error:
        raise BadPage("too small, or no memory at all") from error
    if _HEADER.unpack_from(mapping) != (_MAGIC, _VERSION):
        mapping.close()
        raise BadPage("another layout")
    return mapping
