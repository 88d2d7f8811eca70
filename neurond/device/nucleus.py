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


def pick(
    scores: torch.Tensor, draw: Draw, width: int, *, cuts_tail: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [R] and whether each is proven [R], for scores [R, V] float32.

    `scores` have their temperature already. min_p, top_k, top_p, in this order, each
    relative to what the one before has left. `cuts_tail`: some row has a min_p.
    """
    gaps = likelihood.gaps(scores)
    weights = likelihood.weights(gaps)
    if cuts_tail:
        weights.masked_fill_(weights < draw.min_p, 0.0)
    ids = likelihood.best(gaps, min(width, scores.shape[-1]))
    found = weights.gather(-1, ids)
    rank = torch.arange(ids.shape[-1], device=ids.device)
    cut = draw.top_k > 0
    found *= (rank < draw.top_k) | ~cut
    upto = found.cumsum(-1)
    mass = weights.sum(-1, keepdim=True)
    complete = ids.shape[-1] == scores.shape[-1]
    return _answer(ids, found, upto, draw, _Rest(mass, cut, complete))


class _Rest(NamedTuple):
    """What is known of a whole row: its mass, is it cut by rank, are all ids ranked."""

    mass: torch.Tensor
    cut: torch.Tensor
    complete: bool


def _answer(
    ids: torch.Tensor,
    found: torch.Tensor,
    upto: torch.Tensor,
    draw: Draw,
    rest: _Rest,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Walk the ranked weights up to the drawn share of what top_p leaves."""
    end = upto[:, -1:]
    ranked_all = (end == rest.mass) | (rest.cut & (draw.top_k <= ids.shape[-1]))
    if rest.complete:
        ranked_all = torch.ones_like(ranked_all)
    total = torch.where(ranked_all, end, rest.mass)
    inside = (upto - found < draw.top_p * total) & (found > 0)
    inside[:, 0] = True  # the best stays whatever top_p is
    num_inside = inside.sum(-1, keepdim=True)
    kept = torch.where(draw.top_p < 1, upto.gather(-1, num_inside - 1), total)
    share = draw.number * kept
    index = torch.minimum((upto <= share).sum(-1, keepdim=True), num_inside - 1)
    closed = (draw.top_p < 1) & (end >= draw.top_p * total)
    open_ended = (draw.top_p >= 1) & (share < end)
    proven = ranked_all | (~rest.cut & (closed | open_ended))
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
