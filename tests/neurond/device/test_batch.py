from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.messages import Sampling
from neurond.device.backend import Resident, Work
from neurond.device.batch import clip, make_batch, runs_of, slots_of, spans_of
from neurond.device.sequence import Sequence
from tests.neurond.device.rig import make_submit

PAGE_TOKENS = 4


def make_work(
    num_ids: int, computed: int, count: int, *, first_page: int = 0, scores: int = -1
) -> Work:
    """Ids 100, 101, … on consecutive pages."""
    ids = tuple(range(100, 100 + num_ids))
    sampling = Sampling(0.0, prompt_logprobs=scores)
    submit = make_submit(1, ids, sampling=sampling)
    model = Resident("m", 512, 512, frozenset(), 0, {})
    sequence = Sequence(1, submit, model, 0.0)
    sequence.num_computed = computed
    sequence.pages = list(range(first_page, first_page + -(-num_ids // PAGE_TOKENS)))
    return Work(sequence, count)


@settings(max_examples=60, deadline=None)
@given(
    pages=st.lists(st.integers(0, 20), min_size=1, max_size=12, unique=True),
    data=st.data(),
)
def test_runs_name_the_slot_of_every_token_once(
    pages: list[int], data: st.DataObject
) -> None:
    num_tokens = data.draw(st.integers(0, len(pages) * PAGE_TOKENS))
    runs = runs_of(pages, PAGE_TOKENS, num_tokens)
    wanted = [
        pages[t // PAGE_TOKENS] * PAGE_TOKENS + t % PAGE_TOKENS
        for t in range(num_tokens)
    ]
    assert slots_of(runs) == wanted
    follow = [a + n == b for (a, n), (b, _) in zip(runs, runs[1:], strict=False)]
    assert not any(follow)  # what follows is one run
    begin = data.draw(st.integers(0, num_tokens))
    end = data.draw(st.integers(begin, num_tokens))
    assert slots_of(clip(runs, begin, end)) == wanted[begin:end]


def test_too_few_pages_are_an_error() -> None:
    with pytest.raises(ValueError, match="1 pages"):
        runs_of([3], PAGE_TOKENS, 5)


def test_rows_come_first_and_works_find_their_logits_again() -> None:
    works = [
        make_work(9, 0, 6),  # a chunk, more to come
        make_work(6, 5, 1, first_page=5),  # decodes
        make_work(7, 3, 4, first_page=10),  # the last chunk
        make_work(5, 1, 3, first_page=15, scores=0),  # every row, for scores
        make_work(8, 7, 1, first_page=20),  # decodes
    ]
    batch = make_batch(works, PAGE_TOKENS)
    assert [segment.work for segment in batch.segments] == [1, 4, 0, 2, 3]
    assert batch.num_rows == 2
    assert batch.positions == [5, 7, *range(6), *range(3, 7), *range(1, 4)]
    assert batch.ids == [100 + position for position in batch.positions]
    assert batch.slots[:2] == [25, 87]
    spans = spans_of(batch)
    kept = [batch.kept[first : first + count] for first, count in spans]
    assert kept == [[], [0], [11], [12, 13, 14], [1]]


def test_a_batch_without_wanted_logits_keeps_one_row() -> None:
    batch = make_batch([make_work(9, 0, 6)], PAGE_TOKENS)
    assert batch.kept == [5]
    assert spans_of(batch) == ((0, 0),)
