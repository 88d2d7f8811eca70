"""Which token a random number means, among those that the parameters leave.

Device process, pure, torch on any device, no read-back. Rows are independent: sums are
exact (`likelihood`), so nothing depends on how many rows there are.

The whole vocabulary is never sorted at first. Of each row the best `width` tokens are
ranked and the sum over all is taken; if the answer lies among them that is proven by
the sums, and the answer is the one that the full order would give. If not, the caller
asks again with a larger width; the width of the vocabulary always answers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from neurond.device import likelihood


class Draw(NamedTuple):
    """How each of R rows is drawn: columns of [R, 1] float64."""

    temperature: torch.Tensor
    typical_p: torch.Tensor
    min_p: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    number: torch.Tensor

    @classmethod
    def of(cls, table: torch.Tensor) -> Draw:
        """From [R, 6], in this order."""
        return cls(*table.unsqueeze(-1).unbind(1))


class Ranked(NamedTuple):
    """The likeliest tokens of R rows, and what all tokens of a row weigh together."""

    ids: torch.Tensor  # [R, width] int64
    weights: torch.Tensor  # [R, width] float64, falling
    mass: torch.Tensor  # [R, 1] float64


def rank(scores: torch.Tensor, min_p: torch.Tensor | None, width: int) -> Ranked:
    """The passes over whole rows, of scores [R, V] float32 with their temperature."""
    gaps = likelihood.gaps(scores)
    weights = likelihood.weights(gaps)
    if min_p is not None:
        weights.masked_fill_(weights < min_p, 0.0)
    ids = likelihood.best(gaps, min(width, scores.shape[-1]))
    return Ranked(ids, weights.gather(-1, ids), weights.sum(-1, keepdim=True))


def pick(ranked: Ranked, draw: Draw, vocab_size: int) -> tuple[torch.Tensor, ...]:
    """Tokens [R] and whether each is proven [R].

    top_k, then top_p of what that has left; then up to the drawn share of the rest.
    """
    ids, weights, mass = ranked
    width = ids.shape[-1]
    cut = draw.top_k > 0
    found = weights * ((torch.arange(width, device=ids.device) < draw.top_k) | ~cut)
    upto = found.cumsum(-1)
    end = upto[:, -1:]
    ranked_all = (end == mass) | (cut & (draw.top_k <= width)) | (width == vocab_size)
    total = torch.where(ranked_all, end, mass)
    inside = (upto - found < draw.top_p * total) & (found > 0)
    inside[:, 0] = True  # the best stays whatever top_p is
    num_inside = inside.sum(-1, keepdim=True)
    kept = torch.where(draw.top_p < 1, upto.gather(-1, num_inside - 1), total)
    share = draw.number * kept
    index = torch.minimum((upto <= share).sum(-1, keepdim=True), num_inside - 1)
    reached = torch.where(draw.top_p < 1, draw.top_p * total <= end, share < end)
    proven = ranked_all | (~cut & reached)
    return ids.gather(-1, index).squeeze(-1), proven.squeeze(-1)


def typical(scores: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Scores [R, V] with -inf outside the locally typical set of each row.

    Tokens go by how far their surprise is from the expected one, nearest first, until
    `mass` [R, 1] is reached (Meister et al., "Locally Typical Sampling", 2023).
    """
    gaps = likelihood.gaps(scores)
    weights = likelihood.weights(gaps)
    # 0 * inf where a token can't come
    surprise = torch.where(weights > 0, gaps.double(), 0.0)
    total = weights.sum(-1, keepdim=True)
    expected = likelihood.to_grid(weights * surprise).sum(-1, keepdim=True) / total
    distance = (gaps.double() - expected).abs_()
    order = torch.sort(distance, dim=-1, stable=True).indices
    ranked = weights.gather(-1, order)
    inside = ranked.cumsum(-1) - ranked < mass * total
    inside[:, 0] = True
    keep = torch.empty_like(inside).scatter_(-1, order, inside)
    return scores.masked_fill(~keep, float("-inf"))
