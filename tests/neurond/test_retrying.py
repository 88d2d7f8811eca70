"""When it is worth to ask again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurond.retrying import ends_s, retry_after_s


@pytest.mark.parametrize(
    ("ends", "wanted", "found"),
    [
        ([], 1, None),
        ([0.0], 1, 1.0),
        ([7.0, 3.0, 9.0], 1, 3.0),
        ([7.0, 3.0, 9.0], 3, 9.0),
        ([7.0, 3.0, 9.0], 4, 12.0),
        ([7.0, 3.0, 9.0], 100, 30.0),
        ([500.0], 1, 30.0),
        ([5.0], 0, 5.0),
    ],
)
def test_a_place_is_free_when_so_many_have_ended(
    ends: list[float], wanted: int, found: float | None
) -> None:
    assert retry_after_s(ends, wanted) == found


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=9), st.integers(-3, 99))
def test_it_is_bounded_and_more_places_never_come_sooner(
    ends: list[float], wanted: int
) -> None:
    now, later = retry_after_s(ends, wanted), retry_after_s(ends, wanted + 1)
    assert now is not None
    assert later is not None
    assert 1 <= now <= later <= 30


@pytest.mark.parametrize(
    ("lefts", "seats", "found"),
    [
        ([], 0, []),
        ([5.0, 1.0], 2, [5.0, 1.0]),
        ([5.0, 1.0], 1, [5.0, 6.0]),
        ([5.0, 1.0, 2.0, 2.0], 2, [5.0, 1.0, 3.0, 5.0]),
    ],
)
def test_who_waits_begins_when_one_before_it_has_ended(
    lefts: list[float], seats: int, found: list[float]
) -> None:
    assert ends_s(lefts, seats) == found


@given(st.lists(st.floats(0, 1e3), max_size=9), st.integers(1, 9))
def test_more_seats_never_end_anybody_later(lefts: list[float], seats: int) -> None:
    few, more = sorted(ends_s(lefts, seats)), sorted(ends_s(lefts, seats + 1))
    assert all(a >= b for a, b in zip(few, more, strict=True))
    assert more == sorted(lefts) or len(lefts) > seats + 1
