"""When it is worth to ask again: from who is served now and how fast.

Device process and front-end worker; pure.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

LEAST_S = 1.0
MOST_S = 30.0


def retry_after_s(ends_s: Iterable[float], num_wanted: int = 1) -> float | None:
    """Seconds until so many places are free, from 1 to 30; None where nobody knows.

    `ends_s`: in how many seconds each of those that hold a place will have ended at the
    latest. Wanted are more than they are: then their places turn over several times.
    """
    ends = sorted(ends_s)
    if not ends:
        return None
    rounds, index = divmod(max(1, num_wanted) - 1, len(ends))
    return min(MOST_S, max(LEAST_S, ends[index] + rounds * ends[-1]))


def ends_s(lefts_s: Sequence[float], num_seats: int) -> list[float]:
    """In how many seconds each ends, where so many seats serve them in this order and
    each takes so long once it has one."""
    free_s = [0.0] * num_seats
    ends: list[float] = []
    for left_s in lefts_s:
        ends.append(heapq.heappop(free_s) + left_s)
        heapq.heappush(free_s, ends[-1])
    return ends
