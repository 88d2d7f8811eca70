"""Which tiles so many rows are computed in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurond.device.tiles import SIZES, TILE, split


@pytest.mark.parametrize(
    ("count", "sizes", "wanted"),
    [
        (1, SIZES, [1]),
        (2, SIZES, [4]),
        (5, SIZES, [16]),
        (16, SIZES, [16]),
        (17, SIZES, [16, 1]),
        (33, SIZES, [64]),
        (1, (16, 64), [16]),
        (40, (16,), [16, 16, 16]),
        (512, SIZES, [256, 256]),
        (200, SIZES, [256]),
        (100, SIZES, [64, 64]),
    ],
)
def test_few_rows_fill_a_small_tile_and_many_a_large_one(
    count: int, sizes: tuple[int, ...], wanted: list[int]
) -> None:
    assert list(split(count, sizes)) == wanted


@given(
    count=st.integers(1, 3000),
    others=st.sets(st.sampled_from([s for s in SIZES if s != TILE])),
)
def test_tiles_hold_all_rows_and_only_the_last_has_room(
    count: int, others: set[int]
) -> None:
    sizes = tuple(sorted({TILE, *others}))
    tiles = list(split(count, sizes))
    assert set(tiles) <= set(sizes)
    assert sum(tiles[:-1]) < count <= sum(tiles)
