"""The status page: what is shown is what is seen, and damage is no news."""

from __future__ import annotations

import math
import mmap
import os
import random
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ipc import page as layout
from ipc.latch import Latch
from ipc.status import (
    BOUNDS_S,
    COUNTERS,
    GAUGES,
    SERIES,
    BadPage,
    Buckets,
    ModelFigures,
    ModelRow,
    PageView,
    Phase,
    StatusReader,
    StatusWriter,
    create_page,
)
from tests.ipc.processkit import PATIENCE_S, finish, fork, open_fds, wait_for


@dataclass
class Ends:
    fd: int
    writer: StatusWriter
    reader: StatusReader

    def read(self) -> PageView:
        return self.reader.read()


@pytest.fixture
def ends() -> Iterator[Ends]:
    fd = create_page()
    both = Ends(fd, StatusWriter(os.dup(fd)), StatusReader(fd))
    yield both
    both.writer.close()
    both.reader.close()
    os.close(fd)


def test_a_new_page_says_boot_and_nothing_else(ends: Ends) -> None:
    view = ends.read()
    assert (view.phase, view.deadline_s, view.beat_s, view.steps) == (
        Phase.BOOT,
        0,
        0,
        0,
    )
    assert view.requests == ()
    assert view.models == []
    assert set(view.counters.values()) == set(view.gauges.values()) == {0}
    assert view.series["step_seconds"] == Buckets((0,) * (len(BOUNDS_S) + 1), 0.0)


def test_an_armed_phase_shows_its_deadline_and_its_requests(ends: Ends) -> None:
    before_s = time.monotonic()
    ends.writer.arm(Phase.DECODE, 30.0, [7, 2**64 - 1])
    after_s = time.monotonic()
    view = ends.read()
    assert view.phase is Phase.DECODE
    assert before_s <= view.since_s <= after_s
    assert view.deadline_s == view.since_s + 30.0
    assert view.beat_s == view.since_s
    assert view.requests == (7, 2**64 - 1)


def test_a_phase_without_limit_has_no_deadline(ends: Ends) -> None:
    ends.writer.arm(Phase.DECODE, 0)
    assert ends.read().deadline_s == 0


def test_idle_has_neither_deadline_nor_requests_and_beats_at_each_turn(
    ends: Ends,
) -> None:
    ends.writer.arm(Phase.PREFILL, 1.0, [1])
    ends.writer.idle()
    first = ends.read()
    wait_for(lambda: time.monotonic() > first.beat_s)
    ends.writer.idle()
    second = ends.read()
    assert (first.phase, first.deadline_s, first.requests) == (Phase.IDLE, 0, ())
    assert second.beat_s > first.beat_s
    assert second.since_s == first.since_s


def test_a_step_counts_and_beats(ends: Ends) -> None:
    before_s = time.monotonic()
    ends.writer.step()
    ends.writer.step()
    view = ends.read()
    assert view.steps == view.counters["steps_total"] == 2
    assert view.beat_s >= before_s


def test_every_counter_gauge_and_series_has_a_place_of_its_own(ends: Ends) -> None:
    for number, name in enumerate(COUNTERS, 1):
        ends.writer.add(name, number)
    for number, name in enumerate(GAUGES, 101):
        ends.writer.set(name, number)
    for number, name in enumerate(SERIES, 1):
        for _ in range(number):
            ends.writer.observe(name, 0.5)
    view = ends.read()
    assert view.counters == {name: n for n, name in enumerate(COUNTERS, 1)}
    assert view.gauges == {name: n for n, name in enumerate(GAUGES, 101)}
    assert {name: sum(b.counts) for name, b in view.series.items()} == {
        name: n for n, name in enumerate(SERIES, 1)
    }


def test_counters_add_up_and_gauges_are_replaced(ends: Ends) -> None:
    for _ in range(3):
        ends.writer.add("emitted_tokens_total", 5)
        ends.writer.add("requests_total")
        ends.writer.set("memory_free_bytes", 80 << 30)
        ends.writer.set("running", -1)
    view = ends.read()
    assert view.counters["emitted_tokens_total"] == 15
    assert view.counters["requests_total"] == 3
    assert view.gauges["memory_free_bytes"] == 80 << 30
    assert view.gauges["running"] == -1


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (0.001, 0), (0.0011, 1), (1.0, 9), (60.0, 14), (60.1, 15), (9e9, 15)],
)
def test_an_observation_falls_into_the_bucket_whose_edge_is_not_below_it(
    ends: Ends, seconds: float, bucket: int
) -> None:
    ends.writer.observe("prefill_seconds", seconds)
    buckets = ends.read().series["prefill_seconds"]
    assert buckets.counts.index(1) == bucket
    assert buckets.sum_s == seconds
    assert len(buckets.counts) == len(buckets.bounds_s) + 1


def test_models_come_and_go_by_slot(ends: Ends) -> None:
    ends.writer.model(0, "small", 1, 2, 1000.5)
    ends.writer.model(63, "groß", 0, 0, 0.0)
    ends.writer.model(0, "small", 3, 0, 1001.0)
    assert ends.read().models == [
        ModelRow(0, "small", 3, 0, 1001.0),
        ModelRow(63, "groß", 0, 0, 0.0),
    ]
    figures = ModelFigures(812.5, 31.25, 1 << 40, 7)
    ends.writer.model(63, "groß", 0, 0, 0.0, figures)
    assert ends.read().models[-1].figures == figures
    ends.writer.drop_model(0)
    ends.writer.drop_model(5)
    assert [row.slot for row in ends.read().models] == [63]


def test_more_than_the_page_holds_is_cut_and_never_an_error(ends: Ends) -> None:
    ends.writer.arm(Phase.DECODE, 1, range(5000))
    ends.writer.model(64, "one too many", 0, 0, 0.0)
    ends.writer.drop_model(64)
    ends.writer.model(1, "é" * 500, 0, 0, 0.0)
    ends.writer.model(2, "\udcff", 0, 0, 0.0)
    ends.writer.add("requests_total", 2**64 + 3)
    view = ends.read()
    assert view.requests == tuple(range(1024))
    assert [row.name for row in view.models] == ["é" * 128, "?"]
    assert view.counters["requests_total"] == 3


def test_a_page_can_be_neither_shrunk_nor_grown(ends: Ends) -> None:
    for size in (0, layout.PAGE_BYTES - 1, layout.PAGE_BYTES + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(ends.fd, size)


def test_other_memory_is_no_page() -> None:
    small = os.memfd_create("small")
    os.ftruncate(small, layout.PAGE_BYTES - 1)
    other = os.memfd_create("other")
    os.ftruncate(other, layout.PAGE_BYTES)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (small, other, null):
        with pytest.raises(BadPage):
            StatusReader(fd)
        with pytest.raises(BadPage):
            StatusWriter(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_both_ends_let_go_of_what_they_hold() -> None:
    before = open_fds()
    fd = create_page()
    writer, reader = StatusWriter(os.dup(fd)), StatusReader(fd)
    os.close(fd)
    writer.arm(Phase.LOAD, 1)
    assert reader.read().phase is Phase.LOAD, "the page lives on in its mappings"
    writer.close()
    reader.close()
    assert open_fds() == before


# -- a writer that hammers, stops or scribbles


def _hammer(writer: StatusWriter) -> None:
    """Everything in one arm() follows from one number."""
    number = 0
    while True:
        number += 1
        phase = Phase(number % len(Phase))
        writer.arm(phase, float(number), [number] * (number % 700))
        writer.add("requests_total")


def test_a_reader_never_sees_half_of_an_arm(ends: Ends) -> None:
    pid = fork(lambda: _hammer(ends.writer))
    wait_for(lambda: ends.read().counters["requests_total"])
    numbers: set[int] = set()
    end_s = time.monotonic() + PATIENCE_S
    while len(numbers) < 300 and time.monotonic() < end_s:
        view = ends.read()
        number = round(view.deadline_s - view.since_s)
        assert view.phase is Phase(number % len(Phase))
        assert view.requests == (number,) * (number % 700)
        numbers.add(number)
    finish(pid)
    assert len(numbers) == 300, "the writer was running"


def test_what_a_killed_device_was_doing_stays_readable(ends: Ends) -> None:
    pid = fork(lambda: _hammer(ends.writer))
    wait_for(lambda: ends.read().counters["requests_total"] > 100)
    finish(pid)
    view = ends.read()
    number = round(view.deadline_s - view.since_s)
    assert view.requests == (number,) * (number % 700)
    assert view == ends.read()


def _armed_latch(memory: mmap.mmap) -> Latch:
    view = memoryview(memory)[layout._ARMED_AT : layout._MODELS_AT]
    return Latch(view, capacity_bytes=layout._ARMED_BYTES)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"short",
        struct.pack("<Qdd", max(Phase) + 1, 1.0, 2.0),
        struct.pack("<Qdd", 2**64 - 1, 1.0, 2.0),
        struct.pack("<Qdd", 7, 1.0, math.nan),
        struct.pack("<Qdd", 7, math.inf, 2.0),
    ],
)
def test_a_record_that_makes_no_sense_leaves_the_last_good_one_in_force(
    ends: Ends, record: bytes
) -> None:
    ends.writer.arm(Phase.DECODE, 5, [1, 2])
    good = ends.read()
    memory = mmap.mmap(ends.fd, layout.PAGE_BYTES)
    _armed_latch(memory).write(record)
    view = ends.read()
    assert (view.phase, view.since_s, view.deadline_s) == (
        good.phase,
        good.since_s,
        good.deadline_s,
    )
    assert view.requests == (1, 2)


def test_a_page_full_of_noise_is_read_without_an_error(ends: Ends) -> None:
    ends.writer.arm(Phase.DECODE, 5, [1, 2])
    ends.writer.model(3, "m", 1, 1, 1.0)
    good = ends.read()
    memory = mmap.mmap(ends.fd, layout.PAGE_BYTES)
    noise = random.Random(20)
    for fill in (*(noise.randbytes(layout.PAGE_BYTES) for _ in range(30)), b"\xff"):
        memory[:] = fill * (layout.PAGE_BYTES // len(fill))
        view = ends.read()
        assert (view.phase, view.deadline_s) == (good.phase, good.deadline_s)
        assert view.requests == good.requests
        assert math.isfinite(view.beat_s)
        assert all(math.isfinite(b.sum_s) for b in view.series.values())
        assert view.models == []


def test_a_device_that_mends_its_page_is_heard_again(ends: Ends) -> None:
    ends.writer.arm(Phase.DECODE, 5)
    ends.read()
    memory = mmap.mmap(ends.fd, layout.PAGE_BYTES)
    start = layout._ARMED_AT + 64
    memory[start : layout._MODELS_AT] = bytes(layout._MODELS_AT - start)
    assert ends.read().phase is Phase.DECODE
    ends.writer.arm(Phase.STOPPING, 5)
    assert ends.read().phase is Phase.STOPPING
