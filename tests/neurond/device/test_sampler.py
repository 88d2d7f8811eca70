from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.messages import Sampling
from neurond.device.sampler import draw, is_plain_greedy, uniform

PLAIN = Sampling(temperature=1.0)


def sample(
    probabilities: list[float],
    number: float,
    *,
    prompt: tuple[int, ...] = (),
    emitted: tuple[int, ...] = (),
    banned: tuple[int, ...] = (),
    **changes: Any,
) -> int:
    logits = np.log(np.asarray(probabilities, np.float32))
    return draw(
        logits,
        replace(PLAIN, **changes),
        prompt=prompt,
        emitted=emitted,
        banned=banned,
        number=number,
    )


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
    wanted = [0.5, 0.3, 0.15, 0.05]
    counts = [0] * 4
    for index in range(4000):
        counts[sample(wanted, uniform(3, 0, index))] += 1
    assert np.abs(np.asarray(counts) / 4000 - wanted).max() < 0.03


def test_temperature_sharpens_and_flattens() -> None:
    skewed = [0.6, 0.4]
    assert sample(skewed, 0.75, temperature=1.0) == 1
    assert sample(skewed, 0.75, temperature=0.2) == 0
    assert sample([0.9, 0.1], 0.85, temperature=1.0) == 0
    assert sample([0.9, 0.1], 0.85, temperature=5.0) == 1


def test_temperature_zero_is_the_most_likely() -> None:
    assert sample([0.2, 0.5, 0.3], 0.99, temperature=0.0) == 1


def test_top_k_keeps_the_k_most_likely() -> None:
    wide = [0.3, 0.25, 0.25, 0.2]
    assert {sample(wide, n / 100, top_k=1) for n in range(100)} == {0}
    # of equals at the border the smaller id stays
    assert {sample(wide, n / 100, top_k=2) for n in range(100)} == {0, 1}
    assert {sample(wide, n / 100, top_k=9) for n in range(100)} == {0, 1, 2, 3}


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    wide = [0.5, 0.3, 0.15, 0.05]
    assert {sample(wide, n / 100, top_p=0.4) for n in range(100)} == {0}
    assert {sample(wide, n / 100, top_p=0.7) for n in range(100)} == {0, 1}
    assert {sample(wide, n / 100, top_p=0.0) for n in range(100)} == {0}


def test_min_p_drops_what_is_far_below_the_best() -> None:
    wide = [0.5, 0.3, 0.15, 0.05]
    assert {sample(wide, n / 100, min_p=0.5) for n in range(100)} == {0, 1}
    assert {sample(wide, n / 100, min_p=1.0) for n in range(100)} == {0}


def test_logit_bias_forces_and_forbids() -> None:
    even = [0.25] * 4
    assert {sample(even, n / 10, logit_bias=((2, 100.0),)) for n in range(10)} == {2}
    assert 2 not in {sample(even, n / 10, logit_bias=((2, -100.0),)) for n in range(10)}


def test_banned_ids_are_never_drawn() -> None:
    assert {sample([0.9, 0.1], n / 10, banned=(0,)) for n in range(10)} == {1}
    assert sample([0.9, 0.1], 0.5, banned=(0,), temperature=0.0) == 1


def test_repetition_penalty_counts_the_prompt_too() -> None:
    # scores must differ in sign for the two branches of the penalty
    logits = np.asarray([2.0, 1.9, -1.0], np.float32)
    greedy = Sampling(temperature=0.0, repetition_penalty=1.5)

    def best(**seen: tuple[int, ...]) -> int:
        history: dict[str, tuple[int, ...]] = {"prompt": (), "emitted": (), **seen}
        return draw(logits, greedy, banned=(), number=0.0, **history)

    assert best() == 0
    assert best(prompt=(0,)) == 1
    assert best(emitted=(0, 1)) == 0
    lowered = draw(
        np.asarray([-1.0, -1.2], np.float32),
        greedy,
        prompt=(0,),
        emitted=(),
        banned=(),
        number=0.0,
    )
    assert lowered == 1


def test_presence_and_frequency_count_emitted_ids_only() -> None:
    near = [0.4, 0.35, 0.25]
    options: dict[str, Any] = {"temperature": 0.0}
    assert sample(near, 0, prompt=(0,), presence_penalty=1.0, **options) == 0
    assert sample(near, 0, emitted=(0,), presence_penalty=1.0, **options) == 1
    assert sample(near, 0, emitted=(0,), frequency_penalty=0.1, **options) == 0
    assert sample(near, 0, emitted=(0, 0), frequency_penalty=0.1, **options) == 1


def test_the_logits_are_left_as_they_were() -> None:
    logits = np.asarray([1.0, 2.0, 3.0], np.float32)
    changed = Sampling(temperature=0.5, logit_bias=((0, 5.0),))
    draw(logits, changed, prompt=(), emitted=(1,), banned=(2,), number=0.5)
    assert logits.tolist() == [1.0, 2.0, 3.0]


def test_only_untouched_logits_are_plain_greedy() -> None:
    assert is_plain_greedy(Sampling(temperature=0.0), ())
    assert not is_plain_greedy(Sampling(temperature=0.5), ())
    assert not is_plain_greedy(Sampling(temperature=0.0), (1,))
    assert not is_plain_greedy(Sampling(temperature=0.0, logit_bias=((1, 1.0),)), ())
    assert not is_plain_greedy(Sampling(temperature=0.0, repetition_penalty=2.0), ())


@given(
    logits=st.lists(
        st.floats(-80, 80, width=32, allow_nan=False), min_size=1, max_size=60
    ),
    temperature=st.floats(0.01, 5),
    top_k=st.integers(0, 70),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    number=st.floats(0, 1, exclude_max=True),
)
def test_any_parameters_draw_a_token_that_is_there(
    logits: list[float],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    number: float,
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    row = np.asarray(logits, np.float32)
    token = draw(row, sampling, prompt=(), emitted=(), banned=(), number=number)
    assert 0 <= token < len(logits)
    better = int((row > row[token]).sum())
    assert top_k == 0 or better < top_k
