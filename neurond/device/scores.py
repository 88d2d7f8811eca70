"""Log-probabilities of tokens, as clients see them.

Device process, pure, torch on any device. They are the log-softmax of the raw logits,
before temperature, penalties, bias and grammar, as in the OpenAI API: what the model
thought, not what was left to draw from. A row's figures don't depend on its company.

-inf can't be written in JSON, so nothing is below `LEAST`.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing
from typing import NamedTuple

import torch

from ipc.messages import TopScores
from neurond.device import likelihood
from neurond.device.verdict import nan_error

LEAST = -9999.0
_CHUNK_ELEMENTS = 1 << 20  # float64 copies of a chunk: 8 MiB each

Score = tuple[float, TopScores]
"""A token's log-probability, and the most likely tokens in its place."""


class Measured(NamedTuple):
    """Of R rows, still on the device: [R], and twice [R, num_top]."""

    own: torch.Tensor
    top_ids: torch.Tensor
    top: torch.Tensor

    def read(self) -> list[Score]:
        """Fetch them from the device."""
        ids, values = self.top_ids.tolist(), self.top.tolist()
        tops = [
            tuple(zip(*pair, strict=True)) for pair in zip(ids, values, strict=True)
        ]
        return list(zip(self.own.tolist(), tops, strict=True))


def measure(logits: torch.Tensor, tokens: torch.Tensor, num_top: int) -> Measured:
    """log p of tokens [R] under logits [R, V], and the `num_top` best of each row.

    NaN where a row has NaN or +inf.
    """
    gaps = likelihood.gaps(logits.float())
    mass = likelihood.weights(gaps).sum(-1, keepdim=True).log_()
    own = gaps.gather(-1, tokens.unsqueeze(-1))
    top_ids = likelihood.best(gaps, min(num_top, gaps.shape[-1]))
    top = gaps.gather(-1, top_ids)
    return Measured(_log(own, mass).squeeze(-1), top_ids, _log(top, mass))


def prompt_scores(
    logits: torch.Tensor, ids: Listing[int], num_top: int
) -> tuple[Score, ...]:
    """Of each of T ids given all before it; logits [T, V] are those that predict it.

    Takes the rows in chunks, so that its memory doesn't grow with T. Raises
    ServiceError (nan_logits) when a row isn't finite; the caller keeps that error to
    the one request.
    """
    tokens = torch.tensor(list(ids), dtype=torch.int64, device=logits.device)
    num_rows = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
    found: list[Score] = []
    for some, their in zip(logits.split(num_rows), tokens.split(num_rows), strict=True):
        found += measure(some, their, num_top).read()
    if any(own != own for own, _ in found):
        raise nan_error()
    return tuple(found)


def _log(gaps: torch.Tensor, log_mass: torch.Tensor) -> torch.Tensor:
    return (gaps.double() + log_mass).neg_().clamp_(min=LEAST).float()
