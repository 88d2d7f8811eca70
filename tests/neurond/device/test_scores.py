from __future__ import annotations

import math

import pytest
import torch

from ipc.errors import ServiceError
from neurond.device.scores import LEAST, measure, prompt_scores


def test_prompt_scores_are_the_log_softmax_in_chunks_of_any_size() -> None:
    logits = torch.randn(70, 49_152).bfloat16()  # more than one chunk of rows
    ids = torch.randint(0, 49_152, (70,)).tolist()

    scores = prompt_scores(logits, ids, 2)

    wanted = logits.float().log_softmax(-1)
    for row, (own, top) in enumerate(scores):
        assert own == pytest.approx(float(wanted[row, ids[row]]), abs=1e-5)
        assert [value for _, value in top] == pytest.approx(
            wanted[row].topk(2).values.tolist(), abs=1e-5
        )
        assert [float(wanted[row, token]) for token, _ in top] == pytest.approx(
            [value for _, value in top], abs=1e-5
        )
    assert prompt_scores(logits[40:41], ids[40:41], 2) == scores[40:41]


def test_only_the_own_score_without_top() -> None:
    ((own, top),) = prompt_scores(torch.zeros(1, 8), [3], 0)
    assert own == pytest.approx(-math.log(8))
    assert top == ()


def test_the_impossible_has_a_figure_that_json_can_hold() -> None:
    logits = torch.tensor([[0.0, -math.inf]])
    measured = measure(logits, torch.tensor([1]), 2).read()
    assert measured == [(LEAST, ((0, 0.0), (1, LEAST)))]


def test_a_prompt_with_nan_has_no_scores() -> None:
    logits = torch.zeros(3, 8)
    logits[1, 2] = math.nan
    with pytest.raises(ServiceError) as caught:
        prompt_scores(logits, [1, 2, 3], 1)
    assert caught.value.code == "nan_logits"
