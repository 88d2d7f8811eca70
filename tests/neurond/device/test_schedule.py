from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from neurond.device.backend import Resident
from neurond.device.schedule import plan
from neurond.device.sequence import Sequence
from tests.neurond.device.rig import make_submit


def resident(name: str = "m", *, context: int = 100) -> Resident:
    return Resident(name, context, 1000, frozenset({9}), 0, {})


def sequence(
    number: int, *, num_ids: int, num_computed: int, model: Resident
) -> Sequence:
    made = Sequence(1, make_submit(number, (1,) * num_ids), model, now_s=0.0)
    made.num_computed = num_computed
    return made


def planned(running: list[Sequence], **limits: int) -> list[tuple[int, int]]:
    works = plan(running, **{"max_rows": 8, "chunk": 16, **limits})
    return [(work.sequence.id, work.num_ids) for work in works]


def test_nobody_runs_nothing_is_planned() -> None:
    assert planned([]) == []


def test_the_head_prefills_alone_a_chunk_at_a_time() -> None:
    m = resident()
    long = sequence(1, num_ids=40, num_computed=0, model=m)
    decoding = sequence(2, num_ids=5, num_computed=4, model=m)
    assert planned([long, decoding]) == [(1, 16)]
    long.num_computed = 32
    assert planned([long, decoding]) == [(1, 8)]


def test_every_decoding_row_of_the_heads_model_moves() -> None:
    m, other = resident("m"), resident("other")
    running = [
        sequence(1, num_ids=5, num_computed=4, model=m),
        sequence(2, num_ids=5, num_computed=0, model=m),
        sequence(3, num_ids=7, num_computed=6, model=m),
        sequence(4, num_ids=7, num_computed=6, model=other),
    ]
    assert planned(running) == [(1, 1), (3, 1)]
    assert planned(running, max_rows=1) == [(1, 1)]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    max_rows=st.integers(1, 8),
    chunk=st.integers(1, 20),
)
def test_nobody_starves(lengths: list[int], max_rows: int, chunk: int) -> None:
    m = resident(context=1000)
    running = deque(
        sequence(n, num_ids=length, num_computed=0, model=m)
        for n, length in enumerate(lengths)
    )
    emitted = dict.fromkeys(range(len(lengths)), 0)
    num_chunks = sum(-(-length // chunk) for length in lengths)
    for _ in range((num_chunks + 3) * len(lengths)):
        works = plan(running, max_rows=max_rows, chunk=chunk)
        assert 1 <= len(works) <= max_rows
        for work in works:
            assert 1 <= work.num_ids <= max(chunk, 1)
            running.remove(work.sequence)
            running.append(work.sequence)
            draws = work.draws
            work.sequence.num_computed += work.num_ids
            if draws:
                work.sequence.ids.append(1)
                emitted[work.sequence.id] += 1
    assert min(emitted.values()) > 0
