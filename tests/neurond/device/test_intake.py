from __future__ import annotations

import math
from typing import Any

import pytest

from ipc.errors import ClientError
from ipc.messages import Sampling
from neurond.device.intake import check
from tests.neurond.device.rig import make_submit
from tests.neurond.device.test_scheduler import resident

NAN, INF = math.nan, math.inf
M10 = resident(context=10)


def refusal(
    ids: tuple[int, ...] = (1, 2), *, window: int = 10, **more: Any
) -> ClientError:
    with pytest.raises(ClientError) as caught:
        check(make_submit(1, ids, **more), resident(context=10), window)
    assert 400 <= caught.value.status < 500
    return caught.value


def test_a_plain_request_passes() -> None:
    check(make_submit(1, (1, 2, 999)), resident(context=10), 10)


@pytest.mark.parametrize("ids", [(1000,), (-1,), (5, 2**40), (0, -(2**40))])
def test_ids_outside_the_vocabulary_are_refused(ids: tuple[int, ...]) -> None:
    assert "vocabulary of 1000" in refusal(ids).message


@pytest.mark.parametrize("num_prompt", [0, -1, 3])
def test_num_prompt_lies_within_the_ids(num_prompt: int) -> None:
    assert refusal(num_prompt=num_prompt).code == "invalid_request_error"


def test_s74_a_prompt_over_the_context_says_both_figures() -> None:
    error = refusal((1,) * 10)
    assert error.code == "context_length_exceeded"
    assert error.fields == {"prompt_len": 10, "max": 9}


def test_a_resumed_request_may_have_filled_the_context() -> None:
    check(make_submit(1, (1,) * 10, num_prompt=9), resident(context=10), 10)
    refusal((1,) * 11, num_prompt=9)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=NAN),
        Sampling(temperature=-1.0),
        Sampling(temperature=INF),
        Sampling(top_p=1.5),
        Sampling(min_p=-0.1),
        Sampling(repetition_penalty=0.0),
        Sampling(presence_penalty=INF),
        Sampling(typical_p=1.5),
        Sampling(logprobs=21),
        Sampling(logprobs=-2),
        Sampling(prompt_logprobs=10**9),
        Sampling(logit_bias=((1000, 1.0),)),
        Sampling(logit_bias=((-1, 1.0),)),
        Sampling(logit_bias=((1, NAN),)),
    ],
)
def test_sampling_values_that_would_break_the_sampler_are_refused(
    sampling: Sampling,
) -> None:
    assert refusal(sampling=sampling).code == "invalid_request_error"


def test_s26_the_window_that_memory_leaves_is_the_limit() -> None:
    error = refusal((1,) * 6, window=6)
    assert error.code == "context_length_exceeded"
    assert error.fields == {"prompt_len": 6, "max": 5}
    check(make_submit(1, (1,) * 5), resident(context=10), 6)


def test_s26_with_no_memory_at_all_no_shorter_prompt_would_do() -> None:
    error = refusal(window=0)
    assert (error.code, error.status) == ("prompt_too_long_for_vram", 413)


def test_no_token_may_be_wanted_when_the_prompt_is_to_be_scored() -> None:
    scored = Sampling(prompt_logprobs=0)
    check(make_submit(1, (1,) * 10, max_tokens=0, sampling=scored), M10, 10)
    assert refusal(max_tokens=0).param == "max_tokens"
    assert refusal(max_tokens=-1, sampling=scored).param == "max_tokens"


@pytest.mark.parametrize("stop_ids", [(1000,), (-1,), (1,) * 2000])
def test_stop_ids_are_few_and_the_models(stop_ids: tuple[int, ...]) -> None:
    assert refusal(stop_ids=stop_ids).param == "stop"
