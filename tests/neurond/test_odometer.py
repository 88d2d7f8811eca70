"""Counters over all lives of a device."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ipc.status import PageView, StatusWriter
from neurond.odometer import Odometer
from tests.neurond.slotkit import page


def life(tokens: int = 0, steps_s: tuple[float, ...] = ()) -> PageView:
    def write(writer: StatusWriter) -> None:
        writer.add("emitted_tokens_total", tokens)
        for step_s in steps_s:
            writer.observe("step_seconds", step_s)

    return page(write)


def test_it_starts_at_zero() -> None:
    odometer = Odometer()
    assert set(odometer.counters(None).values()) == {0}
    assert odometer.series(None)["step_seconds"]["sum"] == 0.0


def test_lives_add_up() -> None:
    odometer = Odometer()
    odometer.fold(life(tokens=3))
    odometer.fold(life(tokens=4))
    assert odometer.counters(None)["emitted_tokens_total"] == 7
    assert odometer.counters(life(tokens=5))["emitted_tokens_total"] == 12


def test_looking_at_the_life_that_runs_folds_nothing() -> None:
    odometer = Odometer()
    now = life(tokens=5, steps_s=(0.01,))
    for _ in range(2):
        assert odometer.counters(now)["emitted_tokens_total"] == 5
        assert sum(odometer.series(now)["step_seconds"]["counts"]) == 1


def test_observations_of_all_lives_stand_in_one_series() -> None:
    odometer = Odometer()
    odometer.fold(life(steps_s=(0.01, 0.02)))
    series = odometer.series(life(steps_s=(1000.0,)))["step_seconds"]
    assert sum(series["counts"]) == 3
    assert series["counts"][-1] == 1
    assert len(series["counts"]) == len(series["bounds"]) + 1
    assert abs(series["sum"] - 1000.03) < 1e-6


@given(st.lists(st.integers(0, 1000), max_size=5))
def test_a_total_never_goes_back_over_a_death(lives: list[int]) -> None:
    odometer = Odometer()
    seen = [0]
    for tokens in lives:
        view = life(tokens=tokens)
        seen.append(odometer.counters(view)["emitted_tokens_total"])
        odometer.fold(view)
        seen.append(odometer.counters(None)["emitted_tokens_total"])
    assert seen == sorted(seen)
    assert seen[-1] == sum(lives)
