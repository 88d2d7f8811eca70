"""The three-miss debounce, cell by cell, and the state of the gateway."""

from __future__ import annotations

import pytest

from cortexd import snapshot, standing
from cortexd.snapshot import NodeView, Standing
from cortexd.standing import NodeStanding


@pytest.mark.parametrize(
    ("state", "misses", "event", "then", "misses_then"),
    [
        ("unknown", 0, "answered", "up", 0),
        ("unknown", 0, "missed", "unknown", 1),
        ("unknown", 1, "missed", "unknown", 2),
        ("unknown", 2, "missed", "down", 3),
        ("up", 0, "answered", "up", 0),
        ("up", 2, "answered", "up", 0),
        ("up", 0, "missed", "up", 1),
        ("up", 1, "missed", "up", 2),
        ("up", 2, "missed", "down", 3),
        ("down", 3, "answered", "up", 0),
        ("down", 3, "missed", "down", 4),
    ],
)
def test_s25_each_cell_of_the_debounce(
    state: Standing, misses: int, event: str, then: str, misses_then: int
) -> None:
    old = NodeStanding(state, since_s=1.0, misses=misses)

    new = getattr(standing, event)(old, 9.0)

    assert (new.state, new.misses) == (then, misses_then)
    assert new.since_s == (1.0 if then == state else 9.0)


@pytest.mark.parametrize(
    ("standings", "complete", "state"),
    [
        (["up", "up"], True, "ready"),
        (["up", "down"], True, "impaired"),
        (["down"], True, "impaired"),
        (["up", "unknown"], False, "starting"),
        ([], True, "impaired"),
        ([], False, "starting"),
    ],
)
def test_the_gateway_is_as_well_as_its_nodes(
    standings: list[Standing], complete: bool, state: str
) -> None:
    nodes = [NodeView(str(i), "", standing) for i, standing in enumerate(standings)]
    known = snapshot.of(
        number=1, complete=complete, created_s=0, nodes=nodes, models=[]
    )

    assert standing.gateway_state(known) == state
