"""What a model's fact says of its seats."""

from __future__ import annotations

from typing import Any

import pytest

from neurond.frontend.admission import num_seats


@pytest.mark.parametrize(
    ("fact", "num_ours", "found"),
    [
        ({}, 5, 0),
        ({"running": 0, "waiting": 3}, 5, 0),
        ({"running": 4, "waiting": 60}, 64, 4),
        ({"running": 4, "waiting": 60}, 32, 2),
        ({"running": 4, "waiting": 60}, 1, 1),
        ({"running": 4, "waiting": None}, 64, 4),
    ],
)
def test_a_worker_counts_on_its_share_of_the_seats(
    fact: dict[str, Any], num_ours: int, found: int
) -> None:
    assert num_seats(fact, num_ours) == found
