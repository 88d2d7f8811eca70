from __future__ import annotations

import pytest
import torch

from neurond.device import likelihood, nucleus


def draws(num: int, *, top_k: int = 0, top_p: float = 1.0) -> nucleus.Draw:
    """Numbers spread evenly over [0, 1)."""
    table = torch.tensor([1.0, 1.0, 0.0, top_k, top_p, 0.0], dtype=torch.float64)
    table = table.repeat(num, 1)
    table[:, 5] = torch.arange(num, dtype=torch.float64) / num
    return nucleus.Draw.of(table)


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.01])
@pytest.mark.parametrize("top_k", [0, 20, 200])
@pytest.mark.parametrize("spread", [0.5, 2.0, 6.0])
def test_what_few_candidates_prove_is_what_the_full_order_gives(
    spread: float, top_k: int, top_p: float
) -> None:
    made = torch.Generator().manual_seed(3)
    scores = (torch.randn(1, 1024, generator=made) * spread).bfloat16().float()
    scores = scores.expand(50, -1)
    draw = draws(50, top_k=top_k, top_p=top_p)

    whole, sure = nucleus.pick(nucleus.rank(scores, None, 1024), draw, 1024)
    few, proven = nucleus.pick(nucleus.rank(scores, None, 64), draw, 1024)

    assert sure.all()
    assert torch.equal(whole[proven], few[proven])
    if top_k == 20 or (spread == 6.0 and top_k == 0):
        assert proven.all()
    if top_k == 200:
        assert not proven.any()
    if top_k == 0 and top_p == 1.0 and spread == 2.0:  # by where the number falls
        assert 0 < proven.sum() < 50


def test_the_sum_of_weights_does_not_depend_on_the_order_of_adding() -> None:
    weights = likelihood.weights(likelihood.gaps(torch.randn(1, 5000)))
    backwards, shuffled = weights.flip(1), weights[:, torch.randperm(5000)]
    one_by_one = weights.cumsum(-1)[0, -1]
    assert weights.sum() == backwards.sum() == shuffled.sum() == one_by_one


@pytest.mark.parametrize("size", [50, 4096, 4099, 49_152])
def test_the_best_are_ordered_by_score_and_equals_by_id(size: int) -> None:
    scores = torch.randint(0, 30, (3, size)).float()  # hundreds of equals
    found = likelihood.best(likelihood.gaps(scores), 40)
    for row, ids in zip(scores.tolist(), found.tolist(), strict=True):
        wanted = sorted(range(size), key=lambda token: (-row[token], token))
        assert ids == wanted[:40]
