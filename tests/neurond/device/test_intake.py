from __future__ import annotations

import math
from typing import Any

import pytest

from ipc.errors import ClientError
from ipc.messages import Sampling
from neurond.device.intake import check
from tests.neurond.device.rig import make_submit
from tests.neurond.device.test_schedule import resident

NAN, INF = math.nan, math.inf


def refusal(ids: tuple[int, ...] = (1, 2), **more: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        check(make_submit(1, ids, **more), resident(context=10))
    assert 400 <= caught.value.status < 500
    return caught.value


def test_a_plain_request_passes() -> None:
    check(make_submit(1, (1, 2, 999)), resident(context=10))


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
    check(make_submit(1, (1,) * 10, num_prompt=9), resident(context=10))
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
        Sampling(logit_bias=((1000, 1.0),)),
        Sampling(logit_bias=((-1, 1.0),)),
        Sampling(logit_bias=((1, NAN),)),
    ],
)
def test_sampling_values_that_would_break_the_sampler_are_refused(
    sampling: Sampling,
) -> None:
    assert refusal(sampling=sampling).code == "invalid_request_error"
