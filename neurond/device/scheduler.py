"""Who is computed next, who gets the next seat, who has to give way.

Device process, torch-free, pure. A step is for one model; the models take turns. It has
a row for every sequence of the model that decodes, and chunks of the prompts that are
not computed yet, under a budget of tokens that keeps the streams flowing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Listing

from neurond.device.backend import Work
from neurond.device.sequence import Sequence

_STINT_TOKENS = 128
"""A layer of so many takes a few ms also behind a long past, so stints end near their
time; they cost no more a token than larger ones."""
_SMALL_TOKENS = 64
"""A prompt with less left doesn't wait for one that goes in stints."""


def plan(
    sequences: Listing[Sequence],
    *,
    max_rows: int,
    num_tokens: int,
    pause_s: float = 0.0,
) -> list[Work]:
    """The works of one step of one model.

    `sequences` run, the one computed longest ago first; its group on trial, or all that
    are on none, have this step to themselves. `num_tokens` is the budget of prompt
    tokens. Where a forward takes a single row, decoding and prefill alternate.
    `pause_s` > 0: a large chunk goes in stints, so that a step takes about so long.
    """
    sequences = [s for s in sequences if s.trial_group == sequences[0].trial_group]
    if sequences and sequences[0].submit.embed:
        return _whole_texts(sequences, max_rows=max_rows, num_tokens=num_tokens)
    if max_rows == 1:
        sequences = sequences[:1]
    filling = [s for s in sequences if not s.decodes]
    decoding = [s for s in sequences if s.decodes]
    rows = [Work(s, 1) for s in decoding[: max_rows - bool(filling)]]
    filling = in_turn(filling, decoding)[: max_rows - len(rows)]
    if large := _for_stints([s for s in sequences if s in filling], pause_s):
        return rows + _in_stints(large, filling, pause_s)
    given = share([s.num_pending for s in filling], num_tokens)
    parts = [s.part(n) for s, n in zip(filling, given, strict=True)]
    chunks = [Work(s, n) for s, n in zip(filling, parts, strict=True) if n]
    return rows + chunks


def _for_stints(filling: Listing[Sequence], pause_s: float) -> Sequence | None:
    """Whose chunk goes in stints: one that is under way, or a large prompt's of the
    principal whose last one is longest ago. `filling` are in that order."""
    opened = next((s for s in filling if s.open_ids), None)
    if opened is not None or not pause_s:
        return opened
    large = [s for s in filling if s.num_pending > _SMALL_TOKENS]
    last = {s.submit.principal: place for place, s in enumerate(large)}
    return min(large, key=lambda s: last[s.submit.principal], default=None)


def _in_stints(
    large: Sequence, filling: Iterable[Sequence], pause_s: float
) -> list[Work]:
    """One chunk in stints, and beside it what is small; with nobody to wait for it, a
    chunk that is under way is finished."""
    num_ids = large.open_ids or min(large.num_pending, _STINT_TOKENS)
    small = [Work(s, s.num_pending) for s in filling if _is_small(s) and s is not large]
    return [*small[:1], Work(large, num_ids, pause_s or math.inf)]


def _is_small(sequence: Sequence) -> bool:
    return sequence.num_pending <= _SMALL_TOKENS and not sequence.open_ids


def _whole_texts(
    sequences: Iterable[Sequence], *, max_rows: int, num_tokens: int
) -> list[Work]:
    """Texts for vectors are never cut: as many as fit, the first one in any case."""
    works: list[Work] = []
    for sequence in sequences:
        num_tokens -= sequence.num_pending
        if works and (num_tokens < 0 or len(works) == max_rows):
            break
        works.append(Work(sequence, sequence.num_pending))
    return works


def in_turn(
    filling: Iterable[Sequence], decoding: Iterable[Sequence]
) -> list[Sequence]:
    """Prompts in the order in which they get a step's tokens (S31).

    Who came first, so that it ends; then those whose principal has the fewest streams
    and prompts before them, and of these who ends soonest.
    """
    by_age = sorted(filling, key=lambda s: s.arrived_s)
    first = by_age[:1]
    before = Counter(s.submit.principal for s in (*first, *decoding))
    ranks: dict[Sequence, int] = {}
    for sequence in sorted(by_age[1:], key=lambda s: s.num_pending):
        principal = sequence.submit.principal
        ranks[sequence] = before[principal]
        before[principal] += 1
    return [*first, *sorted(ranks, key=ranks.__getitem__)]


def share(pending: Listing[int], num_tokens: int) -> list[int]:
    """Divide a step's prompt tokens, in this order.

    `pending[0]` came first: it gets half at least.
    """
    if not pending:
        return []
    given = [0] * len(pending)
    left = max(1, num_tokens)
    first = max(left - left // 2, left - sum(pending[1:]))
    given[0] = min(pending[0], first)
    left -= given[0]
    for index in range(1, len(pending)):
        given[index] = min(pending[index], left)
        left -= given[index]
    return given


def next_seat(
    waiting: Iterable[Sequence], running: Iterable[Sequence]
) -> Sequence | None:
    """Whose turn it is (S31): `waiting` in order of arrival.

    First who ran already and had to give way, or whose device died; then the principal
    that has the fewest running, then the higher priority, then who came first.
    """
    seats = Counter(sequence.submit.principal for sequence in running)

    def rank(sequence: Sequence) -> tuple[bool, int, int]:
        submit = sequence.submit
        fresh = sequence.is_new
        return fresh, seats[submit.principal] if fresh else 0, -submit.priority

    return min(waiting, key=rank, default=None)


def victim(running: Iterable[Sequence]) -> Sequence | None:
    """Who gives its pages back: the lowest priority, of those the youngest.

    Never the one that came first, so that somebody always ends. None: there is no
    other.
    """
    by_age = sorted(running, key=lambda s: s.arrived_s)
    younger = reversed(by_age[1:])
    return min(younger, key=lambda s: s.submit.priority, default=None)


def shares(candidate: Sequence, other: Sequence) -> int:
    """Tokens at the beginning of the candidate's prompt that `other` may give it; they
    stay the same while it runs."""
    same = candidate.model is other.model
    if not same or other.decodes or other.submit.embed:
        return 0
    if candidate.trial_group or other.trial_group:
        return 0  # nobody waits for a suspect, and it is computed itself
    if candidate.submit.cache_salt != other.submit.cache_salt:
        return 0
    return min(common_length(candidate.ids, other.ids), len(candidate.ids) - 1)


def is_due(num_shared: int, other: Sequence) -> int:
    """How many of the first tokens of `other` it is about to compute."""
    return 0 if other.decodes else max(0, num_shared - other.num_computed)


def computes_for(candidate: Sequence, other: Sequence) -> int:
    """Tokens of the candidate's prompt that `other` is about to compute."""
    return is_due(shares(candidate, other), other)


def common_length(left: Listing[int], right: Listing[int]) -> int:
    """Length of the longest common beginning, by halving."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
