from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.messages import Sampling
from neurond.device.backend import CacheSpec, Resident
from neurond.device.scheduler import (
    common_length,
    computes_for,
    next_seat,
    plan,
    share,
    victim,
)
from neurond.device.sequence import Sequence
from tests.neurond.device.rig import make_submit


def resident(
    name: str = "m", *, context: int = 100, cache: CacheSpec | None = None
) -> Resident:
    return Resident(
        name, context, 1000, frozenset({9}), 0, {}, cache=cache or CacheSpec()
    )


M = resident()


def sequence(
    number: int,
    *,
    num_ids: int = 5,
    num_computed: int = 0,
    model: Resident = M,
    arrived_s: float = -1.0,
    **more: Any,
) -> Sequence:
    """Arrives in the order of its number."""
    submit = make_submit(number, more.pop("ids", (1,) * num_ids), **more)
    arrived_s = number if arrived_s < 0 else arrived_s
    made = Sequence(1, submit, model, now_s=arrived_s)
    made.num_computed = num_computed
    return made


def decoding(number: int, **more: Any) -> Sequence:
    return sequence(number, num_ids=5, num_computed=4, **more)


def planned(running: list[Sequence], **limits: int) -> list[tuple[int, int]]:
    works = plan(running, **{"max_rows": 8, "num_tokens": 16, **limits})
    return [(work.sequence.id, work.num_ids) for work in works]


# ---- a chunk in stints --------------------------------------------------------------


def in_stints(running: list[Sequence]) -> list[tuple[int, int, float]]:
    works = plan(running, max_rows=8, num_tokens=512, pause_s=0.1)
    return [(work.sequence.id, work.num_ids, work.pause_s) for work in works]


def test_beside_streams_the_first_large_prompt_goes_in_stints() -> None:
    running = [decoding(1), sequence(2, num_ids=90), sequence(3, num_ids=900)]
    assert in_stints(running) == [(1, 1, 0.0), (2, 90, 0.1)]
    assert in_stints([decoding(1), sequence(3, num_ids=900)])[1:] == [(3, 128, 0.1)]


def test_a_small_prompt_does_not_wait_for_the_stints_of_a_large_one() -> None:
    running = [decoding(1), sequence(2, num_ids=900), sequence(3, num_ids=30)]
    assert in_stints(running) == [(1, 1, 0.0), (3, 30, 0.0), (2, 128, 0.1)]


def test_large_prompts_take_turns_chunk_by_chunk() -> None:
    """The one computed longest ago stands first, whoever came first (S31)."""
    first, second = sequence(2, num_ids=900), sequence(3, num_ids=300)
    assert in_stints([decoding(1), second, first])[1:] == [(3, 128, 0.1)]
    assert in_stints([decoding(1), first, second])[1:] == [(2, 128, 0.1)]


def test_s31_principals_take_turns_with_large_prompts() -> None:
    """Whoever has many of them."""
    theirs = [sequence(n, num_ids=900, principal="a") for n in (2, 3, 4)]
    other = sequence(5, num_ids=900, principal="b")
    running = [decoding(1), *theirs, other]
    turns = []
    for _ in range(6):
        work = plan(running, max_rows=8, num_tokens=512, pause_s=0.1)[-1]
        turns.append(work.sequence.id)
        running.remove(work.sequence)
        running.append(work.sequence)
    assert turns == [2, 5, 3, 5, 4, 5]


def test_a_chunk_under_way_goes_on_before_others_begin_one() -> None:
    opened = sequence(4, num_ids=900)
    opened.open_ids = 200
    assert in_stints([decoding(1), sequence(2, num_ids=900), opened])[1:] == [
        (4, 200, 0.1)
    ]


def test_a_chunk_under_way_is_finished_when_nobody_waits_for_it() -> None:
    opened = sequence(4, num_ids=900)
    opened.open_ids = 200
    works = plan([opened], max_rows=8, num_tokens=512)
    assert [(work.num_ids, work.pause_s) for work in works] == [(200, math.inf)]


# ---- a step -------------------------------------------------------------------------


def test_nobody_runs_nothing_is_planned() -> None:
    assert planned([]) == []


def test_a_step_mixes_every_decoding_row_with_a_chunk_of_prefill() -> None:
    long = sequence(1, num_ids=40)
    running = [long, decoding(2), decoding(3)]
    assert planned(running) == [(2, 1), (3, 1), (1, 16)]
    long.num_computed = 32
    assert planned(running) == [(2, 1), (3, 1), (1, 8)]


def test_several_prompts_prefill_in_one_step_the_first_gets_half() -> None:
    running = [
        sequence(3, num_ids=30),
        sequence(2, num_ids=6),
        sequence(1, num_ids=90),
    ]
    assert planned(running) == [(1, 8), (2, 6), (3, 2)]
    assert planned(running, num_tokens=200) == [(1, 90), (2, 6), (3, 30)]


def test_s31_what_the_first_prompt_leaves_goes_to_other_principals() -> None:
    theirs = [sequence(n, num_ids=40, principal="a") for n in (1, 2, 3)]
    other = sequence(4, num_ids=50, principal="b")
    assert planned([*theirs, other]) == [(1, 8), (4, 8)]
    stream = decoding(5, principal="b")
    third = sequence(6, num_ids=60, principal="c")
    assert planned([*theirs, stream, other, third]) == [(5, 1), (1, 8), (6, 8)]


@given(
    prompts=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(2, 40)), min_size=1, max_size=9
    ),
    num_tokens=st.integers(1, 60),
)
def test_no_principal_has_two_prompts_computed_while_another_has_none(
    prompts: list[tuple[str, int]], num_tokens: int
) -> None:
    running = [
        sequence(n, num_ids=num_ids, principal=principal)
        for n, (principal, num_ids) in enumerate(prompts)
    ]
    works = plan(running, max_rows=8, num_tokens=num_tokens)
    counts = Counter(work.sequence.submit.principal for work in works)
    if len(counts) < len({principal for principal, _ in prompts}):
        assert set(counts.values()) == {1}
    assert works[0].sequence.id == 0
    total = sum(num_ids for _, num_ids in prompts)
    assert sum(work.num_ids for work in works) <= min(total, num_tokens)


@given(crowd=st.integers(1, 12), size=st.integers(2, 90), mine=st.integers(2, 90))
def test_a_prompt_takes_twice_its_time_at_most_beside_another_principals_crowd(
    crowd: int, size: int, mine: int
) -> None:
    running = [sequence(n, num_ids=size, principal="a") for n in range(crowd)]
    one = sequence(99, num_ids=mine, principal="b")
    num_steps = 0
    running.append(one)
    while one.num_pending:
        for work in plan(running, max_rows=20, num_tokens=16):
            work.sequence.num_computed += work.num_ids
        running = [s for s in running if s.num_pending]
        num_steps += 1
    assert num_steps <= -(-mine // 8)


def test_rows_have_a_bound_and_prefill_keeps_one() -> None:
    running = [decoding(1), decoding(2), decoding(3), sequence(4, num_ids=9)]
    assert planned(running, max_rows=3) == [(1, 1), (2, 1), (4, 9)]
    assert planned(running, max_rows=1) == [(1, 1)]
    assert planned(running[::-1], max_rows=1) == [(4, 9)]


def test_texts_for_vectors_are_never_cut() -> None:
    running = [sequence(n, num_ids=12, embed=True) for n in (1, 2, 3)]
    assert planned(running) == [(1, 12)]
    assert planned(running, num_tokens=24) == [(1, 12), (2, 12)]
    assert planned(running, num_tokens=5, max_rows=1) == [(1, 12)]


def test_s82_a_chunk_ends_where_a_state_is_to_be_saved() -> None:
    model = resident(cache=CacheSpec(state_bytes=8))
    one = sequence(1, ids=(1, 1, 9, 1, 9, 1, 1, 4, 4), num_prompt=7, model=model)
    assert one.cuts == (5, 7)
    sizes = []
    while one.num_pending:
        (work,) = plan([one], max_rows=8, num_tokens=4)
        sizes.append(work.num_ids)
        one.num_computed += work.num_ids
    assert sizes == [4, 1, 2, 2]


@given(pending=st.lists(st.integers(1, 50), max_size=6), tokens=st.integers(1, 80))
def test_shares_fill_the_budget_and_no_more(pending: list[int], tokens: int) -> None:
    given_out = share(pending, tokens)
    assert sum(given_out) == min(tokens, sum(pending))
    assert all(0 <= n <= most for n, most in zip(given_out, pending, strict=True))
    assert not pending or given_out[0] >= min(pending[0], (tokens + 1) // 2)


# ---- seats --------------------------------------------------------------------------


def test_s31_the_next_seat_goes_to_the_principal_with_the_fewest_running() -> None:
    running = [sequence(1, principal="a"), sequence(2, principal="a")]
    waiting = [
        sequence(3, principal="a", priority=900),
        sequence(4, principal="b"),
        sequence(5, principal="b", priority=200),
    ]
    assert next_seat(waiting, running) is waiting[2]
    assert next_seat(waiting[:2], running) is waiting[1]
    assert next_seat(waiting[:1], running) is waiting[0]
    assert next_seat([], running) is None


def test_among_equals_arrival_decides_and_who_gave_way_comes_first() -> None:
    waiting = [sequence(1), sequence(2), sequence(3, principal="z", priority=500)]
    running = [sequence(9)]
    assert next_seat(waiting[:2], running) is waiting[0]
    waiting[1].num_preempted = 1
    assert next_seat(waiting, running) is waiting[1]


def test_the_youngest_of_the_lowest_priority_gives_way_never_the_first() -> None:
    first = sequence(1, priority=1)
    running = [sequence(4, priority=200), sequence(3), sequence(2), first]
    assert victim(running) is running[1]
    assert victim([first, running[0]]) is running[0]
    assert victim([first]) is None


# ---- shared prompts -----------------------------------------------------------------


def test_what_another_is_about_to_compute_is_counted() -> None:
    other = sequence(1, ids=(1,) * 20 + (2,) * 20, num_computed=8)
    assert computes_for(sequence(2, ids=(1,) * 30), other) == 12
    assert computes_for(sequence(2, ids=(1,) * 20), other) == 11
    assert computes_for(sequence(2, ids=(1,) * 4), other) == 0
    assert computes_for(sequence(2, ids=(1,) * 30, cache_salt="x"), other) == 0
    assert computes_for(sequence(2, ids=(1,) * 30, model=resident("o")), other) == 0
    other.num_computed = 39
    assert computes_for(sequence(2, ids=(1,) * 30), other) == 0


@pytest.mark.parametrize(
    ("left", "right", "length"),
    [("", "", 0), ("a", "b", 0), ("abc", "abd", 2), ("ab", "abc", 2), ("ab", "ab", 2)],
)
def test_common_length(left: str, right: str, length: int) -> None:
    assert common_length(left.encode(), right.encode()) == length


# ---- all of it ----------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    max_rows=st.integers(1, 8),
    num_tokens=st.integers(1, 20),
)
def test_nobody_starves(lengths: list[int], max_rows: int, num_tokens: int) -> None:
    m = resident(context=1000)
    running = [
        sequence(n, num_ids=length, model=m, sampling=Sampling())
        for n, length in enumerate(lengths)
    ]
    emitted = dict.fromkeys(range(len(lengths)), 0)
    num_chunks = sum(-(-length // num_tokens) for length in lengths)
    for _ in range((num_chunks + 3) * len(lengths)):
        works = plan(running, max_rows=max_rows, num_tokens=num_tokens)
        assert 1 <= len(works) <= max_rows
        for work in works:
            assert 1 <= work.num_ids <= max(num_tokens, 1)
            running.remove(work.sequence)
            running.append(work.sequence)
            draws = work.draws
            work.sequence.num_computed += work.num_ids
            if draws:
                work.sequence.ids.append(1)
                emitted[work.sequence.id] += 1
    assert min(emitted.values()) > 0
