"""How far a load is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurond.stages import PLAIN, WITH_CONVERSION, Progress

reports = st.lists(
    st.tuples(
        st.sampled_from(["converting", "weights", "warmup", "unheard of"]),
        st.integers(-10, 1 << 40),
        st.integers(-10, 1 << 40),
    ),
    max_size=30,
)


@given(st.sampled_from([PLAIN, WITH_CONVERSION]), reports)
def test_the_percentage_never_goes_back_and_stays_a_percentage(
    plan: tuple[tuple[str, float], ...], told: list[tuple[str, int, int]]
) -> None:
    progress = Progress(plan, 0.0)
    seen = [0.0]
    for stage, done, total in told:
        progress.report(stage, done, total)
        seen.append(progress.position(1.0).percent)
    assert seen == sorted(seen)
    assert seen[-1] <= 100.0


@pytest.mark.parametrize(
    ("stage", "done", "percent"),
    [
        ("converting", 0, 0.0),
        ("converting", 50, 30.0),
        ("converting", 100, 60.0),
        ("weights", 50, 77.5),
        ("warmup", 0, 95.0),
        ("warmup", 100, 100.0),
    ],
)
def test_a_stage_counts_by_its_weight(stage: str, done: int, percent: float) -> None:
    progress = Progress(WITH_CONVERSION, 0.0)
    progress.report(stage, done, 100)
    assert progress.position(1.0).percent == percent
    assert progress.position(1.0).stage == stage


@pytest.mark.parametrize(("done", "total"), [(3, 0), (0, -1), (200, 100)])
def test_a_total_that_makes_no_sense_counts_the_stage_as_done(
    done: int, total: int
) -> None:
    progress = Progress(PLAIN, 0.0)
    progress.report("weights", done, total)
    assert progress.position(1.0).percent == 90.0


def test_an_unknown_stage_moves_the_name_and_nothing_else() -> None:
    progress = Progress(PLAIN, 0.0)
    progress.report("weights", 1, 2)
    progress.report("packing", 99, 100)
    at = progress.position(1.0)
    assert (at.stage, at.percent) == ("packing", 45.0)


def test_a_load_begins_with_its_first_stage_and_no_guess() -> None:
    at = Progress(WITH_CONVERSION, 0.0).position(100.0)
    assert (at.stage, at.percent, at.eta_s) == ("converting", 0.0, None)


def test_what_is_left_is_told_from_what_it_took_so_far() -> None:
    progress = Progress(PLAIN, 100.0)
    progress.report("weights", 4, 100)
    assert progress.position(110.0).eta_s is None
    progress.report("weights", 50, 90)
    assert progress.position(110.0).eta_s == 10.0
