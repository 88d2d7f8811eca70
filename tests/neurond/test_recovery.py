"""The times of a recovery and of states, on a clock that the test moves."""

from __future__ import annotations

import pytest

from neurond.recovery import Part, RecoveryClock, StateClock
from neurond.states import DeviceState


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def passes(self, seconds: float) -> None:
        self.now_s += seconds


def test_each_part_is_what_passed_since_the_one_before() -> None:
    clock = Clock()
    recovery = RecoveryClock(clock)
    assert recovery.facts() is None
    recovery.died(at_s=98.0)
    for part, seconds in zip(list(Part)[1:], (0.5, 0.25, 1.5, 4.0), strict=True):
        clock.passes(seconds)
        recovery.reached(part)
    assert recovery.facts() == {
        "detect_s": 2.0,
        "memory_s": 0.5,
        "respawn_s": 0.25,
        "reload_s": 1.5,
        "first_token_s": 4.0,
    }


def test_what_has_not_ended_is_null_and_a_part_out_of_order_is_nothing() -> None:
    clock = Clock()
    recovery = RecoveryClock(clock)
    recovery.reached(Part.RELOAD)  # the first start is no recovery
    assert recovery.facts() is None
    recovery.died(at_s=100.0)
    recovery.reached(Part.RELOAD)
    told = recovery.facts()
    assert told is not None
    assert (told["detect_s"], told["reload_s"]) == (0.0, None)
    assert not recovery.awaits_token


def test_a_death_on_the_way_begins_anew() -> None:
    clock = Clock()
    recovery = RecoveryClock(clock)
    recovery.died(at_s=100.0)
    clock.passes(1)
    recovery.reached(Part.MEMORY)
    recovery.died(at_s=101.0)
    told = recovery.facts()
    assert told is not None
    assert told["memory_s"] is None
    assert recovery.series()["detect"]["counts"][0] == 2


def test_series_count_each_part_once() -> None:
    clock = Clock()
    recovery = RecoveryClock(clock)
    for _ in range(3):
        recovery.died(at_s=clock.now_s)
        for part in list(Part)[1:]:
            clock.passes(0.2)
            recovery.reached(part)
            recovery.reached(part)
    for name in ("memory", "respawn", "reload", "first_token"):
        series = recovery.series()[name]
        assert sum(series["counts"]) == 3
        assert series["sum"] == pytest.approx(0.6)
    assert len(series["counts"]) == len(series["bounds"]) + 1


def test_time_is_counted_in_the_state_that_it_was_spent_in() -> None:
    clock = Clock()
    states = StateClock(clock)
    for state, seconds in (
        (DeviceState.STARTING, 2.0),
        (DeviceState.READY, 10.0),
        (DeviceState.BACKOFF, 1.0),
        (DeviceState.READY, 5.0),
    ):
        states.enter(state)
        clock.passes(seconds)
    totals = states.totals_s()
    assert (totals["starting"], totals["ready"], totals["backoff"]) == (2.0, 15.0, 1.0)
    assert sum(totals.values()) == 18.0
