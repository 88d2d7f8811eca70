"""When it is worth to ask again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurond.retrying import retry_after_s


@pytest.mark.parametrize(
    ("ends_s", "wanted", "found"),
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
    ends_s: list[float], wanted: int, found: float | None
) -> None:
    assert retry_after_s(ends_s, wanted) == found


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=9), st.integers(-3, 99))
def test_it_is_bounded_and_more_places_never_come_sooner(
    ends_s: list[float], wanted: int
) -> None:
    now, later = retry_after_s(ends_s, wanted), retry_after_s(ends_s, wanted + 1)
    assert now is not None
    assert later is not None
    assert 1 <= now <= later <= 30
