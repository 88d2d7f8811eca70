"""`python -m tests.simulation`: many seeds, or one with everything that happened.

--seed 7             the story of seed 7, line by line
--count 2000         seeds 1 to 2000; those that fail are named
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.world import Story, play


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.simulation")
    parser.add_argument("--seed", type=int, default=0, help="replay this one alone")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--count", type=int, default=2000)
    told = parser.parse_args()
    sys.exit(_replay(told.seed) if told.seed else _many(told.first, told.count))


def _replay(seed: int) -> int:
    story = play(seed, is_traced=True)
    print("\n".join(story.trace))
    print(f"seed {seed}: {story.outcomes}, {story.num_deaths} deaths")
    return 1 if story.violations else 0


def _many(first: int, count: int) -> int:
    started_s, outcomes, totals = time.monotonic(), Counter[str](), Counter[str]()
    failed: list[Story] = []
    for seed in range(first, first + count):
        story = play(seed)
        outcomes.update(story.outcomes)
        totals.update(deaths=story.num_deaths, resumed=story.num_resumed)
        totals.update(convicted=story.num_convicted)
        if story.violations:
            failed.append(story)
            print(f"seed {seed}: {story.violations[0]}; {command(seed)}", flush=True)
    seconds = time.monotonic() - started_s
    print(f"{count} seeds in {seconds:.1f} s, {len(failed)} failed")
    print(f"outcomes {dict(outcomes.most_common())}, {dict(totals)}")
    return 1 if failed else 0


def command(seed: int) -> str:
    """What replays it."""
    return f"make simulate SEED={seed}"


if __name__ == "__main__":
    main()
