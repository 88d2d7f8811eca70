"""Rows of logits as likelihoods whose sums don't depend on the order of adding.

Device process, pure, torch on any device. A score's gap is its distance from the best
of its row; its weight is exp(-gap), rounded to a grid so fine, and so coarse, that the
sum over a whole row is exact in float64. So a sum is the same however many rows,
threads or blocks a kernel had, and a row means the same alone and in a batch.

Ranks are those of (gap, token id) packed into one integer: equals go by id everywhere.
"""

from __future__ import annotations

import functools
import math

import torch

_ID_BITS = 32
_FLOAT64_BITS = 53
_DEPTH = 16


def gaps(scores: torch.Tensor) -> torch.Tensor:
    """[R, V] float32: best minus own, >= 0; inf where a score is -inf.

    NaN throughout a row without a finite score.
    """
    return scores.amax(-1, keepdim=True) - scores


def weights(gaps: torch.Tensor) -> torch.Tensor:
    """[R, V] float64 in [0, 1], multiples of the grid: 1 for the best of a row."""
    return to_grid(gaps.double().neg_().exp_())


def to_grid(values: torch.Tensor) -> torch.Tensor:
    """Round values of [0, 1] in place, so that a row of them adds up exactly.

    Adding a number whose last bit is worth the grid's step does the rounding.
    """
    num_values = values.shape[-1]
    step_bits = _FLOAT64_BITS - (num_values - 1).bit_length()
    shift = 1.5 * 2.0 ** (_FLOAT64_BITS - 1 - step_bits)
    return values.add_(shift).sub_(shift)


def best(gaps: torch.Tensor, num: int) -> torch.Tensor:
    """[R, num] token ids, the most likely first, equals by id."""
    # positive floats are ordered like their bits
    keys = gaps.view(torch.int32).to(torch.int64).bitwise_left_shift_(_ID_BITS)
    keys.bitwise_or_(_ids(gaps.shape[-1], gaps.device))
    found = _fewest(keys, num).topk(num, dim=-1, largest=False, sorted=True).values
    return found.bitwise_and_((1 << _ID_BITS) - 1)


def _fewest(keys: torch.Tensor, num: int) -> torch.Tensor:
    """A part of each row's keys that has its `num` least; all differ.

    With the row written in columns, they are in the `num` columns of least minimum.
    """
    depth = math.gcd(keys.shape[-1], _DEPTH)
    num_columns = keys.shape[-1] // depth
    if num_columns <= 2 * num:
        return keys
    columns = keys.view(-1, depth, num_columns)
    least = columns
    while (half := least.shape[1] // 2) > 0:  # amin over this dimension is slow
        least = torch.minimum(least[:, :half], least[:, half:])
    least = least.squeeze(1)
    chosen = least.topk(num, dim=-1, largest=False, sorted=False).indices
    wanted = chosen.unsqueeze(1).expand(-1, depth, -1)
    return columns.gather(-1, wanted).flatten(1)


@functools.lru_cache(maxsize=16)
def _ids(num: int, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.arange(num, device=device)
