"""Hundreds of small nodes that fall apart, each by its own seed, on a simulated clock.

`make simulate` runs thousands; a seed that fails is replayed by the command it names.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.__main__ import command
from tests.simulation.world import play

_SEEDS = 50


@pytest.mark.parametrize("first", range(1, 501, _SEEDS))
def test_every_request_ends_once_and_rightly_whatever_breaks(first: int) -> None:
    outcomes: Counter[str] = Counter()
    failed: list[str] = []
    for seed in range(first, first + _SEEDS):
        story = play(seed)
        outcomes.update(story.outcomes)
        failed += [f"{text}; {command(seed)}" for text in story.violations]
    assert not failed, "\n".join(failed)
    assert outcomes["whole"] > 0.6 * outcomes.total(), outcomes


def test_a_seed_is_always_the_same_story() -> None:
    first, second = (play(233, is_traced=True) for _ in range(2))
    assert _timeless(first.trace) == _timeless(second.trace)
    assert first.num_deaths > 0


def test_the_seeds_meet_what_they_are_meant_to_meet() -> None:
    stories = [play(seed) for seed in range(501, 541)]
    totals = [
        sum(story.num_deaths for story in stories),
        sum(story.num_resumed for story in stories),
        sum(story.num_convicted for story in stories),
    ]
    assert min(totals) > 5, totals
    outcomes = Counter(outcome for story in stories for outcome in story.outcomes)
    assert {"whole", "left", "request_quarantined"} <= outcomes.keys()


def _timeless(trace: list[str]) -> list[str]:
    """Without how long a load took on the host's clock."""
    return [line for line in trace if "seconds=" not in line]
