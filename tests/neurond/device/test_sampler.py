from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.errors import ServiceError
from ipc.messages import Sampling
from neurond.device.backend import Resident, Row
from neurond.device.sampler import Sampler, uniform
from neurond.device.sequence import Sequence
from tests.neurond.device import plaindraw
from tests.neurond.device.rig import make_submit

EOS = 3
PLAIN = Sampling(temperature=1.0)
GREEDY = Sampling(temperature=0.0)
CPU = torch.device("cpu")
WORDS_PER_ROW = 2048 // 32


def running(
    sampling: Sampling,
    *,
    seed: int = 1,
    prompt: tuple[int, ...] = (0,),
    emitted: tuple[int, ...] = (),
    vocab_size: int = 2048,
    **more: Any,
) -> Sequence:
    model = Resident("m", 8192, vocab_size, frozenset({EOS}), 0, {})
    fields = {"num_prompt": len(prompt), "sampling": sampling, "seed": seed, **more}
    return Sequence(1, make_submit(1, (*prompt, *emitted), **fields), model, 0.0)


def drawn(logits: torch.Tensor, *sequences: Sequence) -> list[int]:
    outcomes = Sampler(CPU).draw(logits, sequences)
    return [
        row.token for row in outcomes if isinstance(row, Row) if row.token is not None
    ]


def tokens(probabilities: list[float], *, num: int = 200, **more: Any) -> set[int]:
    """What comes out under many seeds."""
    changes = {k: more.pop(k) for k in list(more) if hasattr(PLAIN, k)}
    sampling = replace(PLAIN, **changes)
    rows = [running(sampling, seed=seed, **more) for seed in range(num)]
    logits = torch.tensor(probabilities).log().expand(num, -1)
    return set(drawn(logits, *rows))


def test_numbers_depend_on_seed_choice_and_index_alone() -> None:
    numbers = {
        uniform(seed, choice, index)
        for seed in (0, 1, 2**63)
        for choice in (0, 1)
        for index in range(50)
    }
    assert len(numbers) == 300
    assert all(0 <= number < 1 for number in numbers)
    assert uniform(5, 0, 9) == uniform(5, 0, 9)
    # the numbers are part of the protocol: a resumed request must draw the same
    assert uniform(1, 0, 0) == pytest.approx(0.33776134126730917, abs=1e-15)


def test_draws_follow_the_distribution() -> None:
    wanted = torch.tensor([0.5, 0.3, 0.15, 0.05])
    rows = [running(PLAIN, seed=seed) for seed in range(4000)]
    counts = np.bincount(drawn(wanted.log().expand(4000, -1), *rows), minlength=4)
    assert np.abs(counts / 4000 - wanted.numpy()).max() < 0.03


def test_temperature_sharpens_and_flattens() -> None:
    # the number of this seed lies between 0.6 and 0.9
    seed = next(s for s in range(99) if 0.7 < uniform(s, 0, 0) < 0.8)

    def token(probabilities: list[float], temperature: float) -> int:
        sequence = running(Sampling(temperature=temperature), seed=seed)
        return drawn(torch.tensor([probabilities]).log(), sequence)[0]

    assert token([0.6, 0.4], 1.0) == 1
    assert token([0.6, 0.4], 0.2) == 0
    assert token([0.9, 0.1], 1.0) == 0
    assert token([0.9, 0.1], 5.0) == 1


def test_temperature_zero_is_the_most_likely() -> None:
    assert tokens([0.2, 0.5, 0.3], temperature=0.0) == {1}


def test_top_k_keeps_the_k_most_likely() -> None:
    wide = [0.3, 0.25, 0.25, 0.2]
    assert tokens(wide, top_k=1) == {0}
    # of equals at the border the smaller id stays
    assert tokens(wide, top_k=2) == {0, 1}
    assert tokens(wide, top_k=9) == {0, 1, 2, 3}


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    wide = [0.5, 0.3, 0.15, 0.05]
    assert tokens(wide, top_p=0.4) == {0}
    assert tokens(wide, top_p=0.7) == {0, 1}
    assert tokens(wide, top_p=0.0) == {0}


def test_min_p_drops_what_is_far_below_the_best() -> None:
    wide = [0.5, 0.3, 0.15, 0.05]
    assert tokens(wide, min_p=0.5) == {0, 1}
    assert tokens(wide, min_p=1.0) == {0}


def test_typical_p_drops_what_surprises_too_much_or_too_little() -> None:
    # the expected surprise is 1.8 nats; the best token has 0.8, others 2.3 or 4.6
    skewed = [0.44, *[0.1] * 5, *[0.01] * 6]
    assert tokens(skewed, typical_p=0.35) == {1, 2, 3, 4}
    assert tokens(skewed, typical_p=0.6) == {0, 1, 2, 3, 4, 5}


def test_logit_bias_forces_and_forbids() -> None:
    even = [0.25] * 4
    assert tokens(even, logit_bias=((2, 100.0),)) == {2}
    assert tokens(even, logit_bias=((2, -100.0),)) == {0, 1, 3}


def test_banned_ids_are_never_drawn() -> None:
    skewed = [0.05, 0.05, 0.1, 0.8]
    assert EOS in tokens(skewed)
    assert tokens(skewed, min_tokens=1) == {0, 1, 2}
    assert tokens(skewed, min_tokens=1, temperature=0.0) == {2}
    assert tokens(skewed, min_tokens=1, emitted=(0,), temperature=0.0) == {EOS}


def test_repetition_penalty_counts_the_prompt_too() -> None:
    # scores must differ in sign for the two branches of the penalty
    logits = torch.tensor([[2.0, 1.9, -1.0, -1.2]])
    strict = replace(GREEDY, repetition_penalty=1.5)

    assert drawn(logits, running(strict, prompt=(3,))) == [0]
    assert drawn(logits, running(strict, prompt=(0,))) == [1]
    assert drawn(logits, running(strict, prompt=(3,), emitted=(0, 1))) == [0]
    both = torch.tensor([[-1.0, -1.2]])
    assert drawn(both, running(strict, prompt=(0,))) == [1]


def test_presence_and_frequency_count_emitted_ids_only() -> None:
    near = torch.tensor([[0.4, 0.35, 0.25]]).log()

    def best(**more: Any) -> int:
        changes = {k: more.pop(k) for k in list(more) if hasattr(GREEDY, k)}
        return drawn(near, running(replace(GREEDY, **changes), **more))[0]

    assert best(presence_penalty=1.0) == 0
    assert best(presence_penalty=1.0, emitted=(0,)) == 1
    assert best(frequency_penalty=0.1, emitted=(0,)) == 0
    assert best(frequency_penalty=0.1, emitted=(0, 0)) == 1


def test_the_logits_are_left_as_they_were() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    changed = Sampling(temperature=0.5, logit_bias=((0, 5.0),), min_tokens=9)
    drawn(logits, running(changed, emitted=(1,)))
    assert logits.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_penalties_are_the_same_counted_step_by_step_or_from_the_ids() -> None:
    strict = Sampling(repetition_penalty=1.2, frequency_penalty=0.7)
    sampler = Sampler(CPU)
    kept = running(strict, prompt=(5, 6, 7))
    for step in range(100):  # more distinct ids than a history begins with
        logits = torch.randn(1, 2048, generator=torch.Generator().manual_seed(step))
        fresh = running(strict, prompt=(5, 6, 7), emitted=tuple(kept.ids[3:]))
        (row,) = sampler.draw(logits, [kept])
        assert isinstance(row, Row)
        assert drawn(logits, fresh) == [row.token]
        kept.append(row.token or 0)


def test_a_row_with_nan_or_inf_fails_and_its_neighbours_do_not() -> None:
    logits = torch.randn(6, 512)
    clean = [running(s, vocab_size=512) for s in (GREEDY, PLAIN) * 3]
    wanted = drawn(logits, *clean)
    logits[0, 7] = logits[1, 7] = math.nan
    logits[4, 9] = logits[5, 9] = math.inf

    outcomes = Sampler(CPU).draw(logits, clean)

    codes = [
        row.code if isinstance(row, ServiceError) else row.token for row in outcomes
    ]
    nan = "nan_logits"
    assert codes == [nan, nan, wanted[2], wanted[3], nan, nan]


def allowing(*ids: int, num_rows: int, row: int) -> np.ndarray[Any, Any]:
    """A bitmask with one constrained row."""
    mask = np.full((num_rows, WORDS_PER_ROW), -1, np.int32)
    mask[row] = 0
    for token in ids:
        mask[row, token // 32] |= np.int32(np.uint32(1 << token % 32).view(np.int32))
    return mask


@pytest.mark.parametrize("sampling", [GREEDY, PLAIN])
def test_a_bitmask_binds_its_row_alone(sampling: Sampling) -> None:
    logits = torch.randn(3, 2048)
    free = [running(sampling, seed=seed) for seed in range(3)]
    bound = [free[0], running(sampling, seed=1, grammar='{"regex": "a"}'), free[2]]
    solo = drawn(logits, *free)

    mask = allowing(31, 1025, num_rows=3, row=1)
    first, second, third = Sampler(CPU).draw(logits, bound, mask)

    assert isinstance(second, Row)
    assert second.token in (31, 1025)
    assert [first, third] == [Row(solo[0]), Row(solo[2])]


def test_ids_beyond_the_bitmask_are_forbidden_to_a_grammar_alone() -> None:
    logits = torch.zeros(2, 2050)
    logits[:, 2049] = 50
    bound = running(GREEDY, grammar='{"regex": "a"}', vocab_size=2050)
    free = running(replace(GREEDY, min_tokens=1), vocab_size=2050)
    mask = allowing(17, num_rows=2, row=0)
    assert Sampler(CPU).draw(logits, [bound, free], mask) == [Row(17), Row(2049)]


@pytest.mark.parametrize("sampling", [GREEDY, PLAIN, Sampling(typical_p=0.5)])
def test_a_row_without_an_allowed_token_is_a_dead_end_and_no_nan(
    sampling: Sampling,
) -> None:
    logits = torch.randn(2, 2048)
    bound = running(
        replace(sampling, min_tokens=1), grammar='{"regex": "a"}', stop_ids=(9,)
    )
    mask = allowing(9, num_rows=2, row=0)  # banned until a token was emitted

    dead, alive = Sampler(CPU).draw(logits, [bound, running(sampling)], mask)

    assert isinstance(dead, ServiceError)
    assert dead.code == "grammar_dead_end"
    assert dead.status == 422
    assert isinstance(alive, Row)


def test_logprobs_are_of_the_raw_logits_and_only_where_asked() -> None:
    logits = torch.randn(3, 512) * 4
    asks = Sampling(temperature=0.3, logprobs=5, logit_bias=((7, 100.0),))
    own = replace(asks, logprobs=0)

    rows = Sampler(CPU).draw(logits, [running(PLAIN), running(asks), running(own)])

    first, second, third = (row for row in rows if isinstance(row, Row))
    wanted = logits.log_softmax(-1)
    assert (first.logprob, first.top) == (None, ())
    assert second.token == 7
    assert second.logprob == pytest.approx(float(wanted[1, 7]), abs=1e-5)
    assert [token for token, _ in second.top] == wanted[1].topk(5).indices.tolist()
    assert third.logprob == pytest.approx(float(wanted[2, 7]), abs=1e-5)
    assert third.top == ()


def mixed(number: int) -> Sampling:
    """Some parameters, the same for the same number."""
    some = random.Random(number)
    return Sampling(
        temperature=some.choice([0.0, 0.3, 1.0, 2.5]),
        top_p=some.choice([1.0, 1.0, 0.95, 0.6, 0.0]),
        top_k=some.choice([0, 0, 1, 40, 300]),
        min_p=some.choice([0.0, 0.0, 0.02, 1.0]),
        typical_p=some.choice([1.0, 1.0, 0.8, 0.2]),
        repetition_penalty=some.choice([1.0, 1.0, 1.3]),
        presence_penalty=some.choice([0.0, 0.0, 0.9]),
        frequency_penalty=some.choice([0.0, 0.0, -0.4]),
        logit_bias=some.choice([(), (), ((5, 3.0), (8, -9.0), (5, 1.0))]),
        min_tokens=some.choice([0, 50]),
        logprobs=some.choice([-1, -1, 0, 3]),
    )


def some_rows(num: int, seed: int, vocab_size: int) -> tuple[torch.Tensor, list[Any]]:
    made = torch.Generator().manual_seed(seed)
    spread = torch.tensor([0.3, 2.0, 5.0])[torch.arange(num) % 3, None]
    logits = torch.randn(num, vocab_size, generator=made) * spread
    logits = logits.to(torch.bfloat16).float() if seed % 2 else logits  # many equals
    some = random.Random(seed)
    ids = [tuple(some.choices(range(vocab_size), k=30)) for _ in range(num)]
    rows = [
        running(
            mixed(100 * seed + row),
            seed=row,
            prompt=ids[row][:10],
            emitted=ids[row][10:],
            vocab_size=vocab_size,
        )
        for row in range(num)
    ]
    return logits, rows


@pytest.mark.parametrize("vocab_size", [777, 4096])
@pytest.mark.parametrize("seed", range(8))
def test_a_row_draws_the_same_alone_in_any_company_and_the_plain_way(
    seed: int, vocab_size: int
) -> None:
    logits, rows = some_rows(16, seed, vocab_size)
    sampler = Sampler(CPU)

    together = sampler.draw(logits, rows)
    in_threes = [
        outcome
        for start in range(0, 16, 3)
        for outcome in sampler.draw(logits[start : start + 3], rows[start : start + 3])
    ]
    backwards = Sampler(CPU).draw(logits.flip(0), rows[::-1])[::-1]
    alone = [Sampler(CPU).draw(logits[i : i + 1], [rows[i]])[0] for i in range(16)]

    assert together == in_threes == backwards == alone
    plain = [plaindraw.draw(row.numpy(), rows[i]) for i, row in enumerate(logits)]
    assert [row.token for row in together if isinstance(row, Row)] == plain


def test_the_number_of_threads_changes_nothing() -> None:
    logits, rows = some_rows(5, 1, 49_152)
    one = Sampler(CPU).draw(logits, rows)
    torch.set_num_threads(2)
    try:
        assert Sampler(CPU).draw(logits, rows) == one
    finally:
        torch.set_num_threads(1)


@settings(max_examples=60)
@given(
    logits=st.lists(
        st.floats(-80, 80, width=32, allow_nan=False), min_size=4, max_size=60
    ),
    temperature=st.floats(0.01, 5),
    top_k=st.integers(0, 70),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_parameters_draw_a_token_that_is_there(
    logits: list[float],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    row = torch.tensor([logits])
    (token,) = drawn(row, running(sampling, seed=seed))
    assert 0 <= token < len(logits)
    better = int((row[0] > row[0, token]).sum())
    assert top_k == 0 or better < top_k


def test_histories_are_bounded_and_can_be_released() -> None:
    sampler = Sampler(CPU)
    strict = replace(GREEDY, presence_penalty=0.5)
    logits = torch.randn(1, 64)
    rows = [running(strict, vocab_size=64) for _ in range(1100)]
    for row in rows:
        sampler.draw(logits, [row])
    assert sampler.num_histories == 1024
    sampler.release(rows[-1])
    sampler.release(rows[0])
    assert sampler.num_histories == 1023
