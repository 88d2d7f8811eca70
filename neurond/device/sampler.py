"""Draws the next token: a pure function of logits, parameters and three numbers.

Device process, pure, numpy only. There is no generator state: the random number of a
token is a hash of (seed, choice, output index), so a sequence that is resumed in
another process, or computed in other company, draws what it would have drawn (D7).

Order: logit_bias, bans, repetition / presence / frequency penalties, temperature,
min_p, top_k, top_p, draw. Equal probabilities are ordered by token id.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ipc.messages import Sampling

Row = npt.NDArray[np.float32]
_GREEDY_BELOW = 1e-5


def is_plain_greedy(sampling: Sampling, banned: Collection[int]) -> bool:
    """The argmax of the untouched logits is the answer."""
    return (
        sampling.temperature < _GREEDY_BELOW
        and not sampling.logit_bias
        and not banned
        and sampling.repetition_penalty == 1.0
        and sampling.presence_penalty == 0.0
        and sampling.frequency_penalty == 0.0
    )


def uniform(seed: int, choice: int, index: int) -> float:
    """In [0, 1), with 53 random bits."""
    key = struct.pack("<QQQ", seed & (2**64 - 1), choice, index)
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) / float(1 << 53)


def draw(
    logits: Row,
    sampling: Sampling,
    *,
    prompt: Sequence[int],
    emitted: Sequence[int],
    banned: Collection[int],
    number: float,
) -> int:
    """The next token. `number` is the `uniform` of this output index."""
    scores = logits.astype(np.float32, copy=True)
    _bias(scores, sampling, banned)
    _penalise(scores, sampling, prompt, emitted)
    if sampling.temperature < _GREEDY_BELOW:
        return int(scores.argmax())
    scores /= np.float32(sampling.temperature)
    ids, weights = _candidates(scores, sampling)
    return int(ids[_pick(weights, number)])


def _bias(scores: Row, sampling: Sampling, banned: Collection[int]) -> None:
    for token, bias in sampling.logit_bias:
        scores[token] += bias
    if banned:
        scores[[token for token in banned if token < len(scores)]] = -np.inf


def _penalise(
    scores: Row, sampling: Sampling, prompt: Sequence[int], emitted: Sequence[int]
) -> None:
    if sampling.repetition_penalty != 1.0:
        seen = np.unique(np.asarray([*prompt, *emitted], dtype=np.int64))
        old = scores[seen]
        penalty = np.float32(sampling.repetition_penalty)
        scores[seen] = np.where(old > 0, old / penalty, old * penalty)
    if emitted and (sampling.presence_penalty or sampling.frequency_penalty):
        tokens, counts = np.unique(np.asarray(emitted, np.int64), return_counts=True)
        scores[tokens] -= np.float32(sampling.presence_penalty)
        scores[tokens] -= np.float32(sampling.frequency_penalty) * counts.astype(
            np.float32
        )


def _candidates(
    scores: Row, sampling: Sampling
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Token ids with their weights, most likely first, after min_p, top_k, top_p."""
    weights = np.exp((scores - scores.max()).astype(np.float64))
    kept = np.flatnonzero(weights >= max(sampling.min_p, 1e-300))
    kept = _most_likely(kept, weights, sampling.top_k)
    order = np.lexsort((kept, -weights[kept]))
    ids = kept[order]
    weights = weights[ids]
    if sampling.top_p < 1.0:
        before = np.cumsum(weights) - weights
        inside = before < sampling.top_p * weights.sum()
        inside[0] = True
        ids, weights = ids[inside], weights[inside]
    return ids, weights


def _most_likely(
    kept: npt.NDArray[Any], weights: npt.NDArray[np.float64], top_k: int
) -> npt.NDArray[Any]:
    """The `top_k` best of `kept`, ties at the border included for the sort to cut."""
    if not 0 < top_k < len(kept):
        return kept
    border = np.partition(weights[kept], len(kept) - top_k)[len(kept) - top_k]
    best = kept[weights[kept] > border]
    ties = kept[weights[kept] == border]
    return np.concatenate((best, ties[: top_k - len(best)]))


def _pick(weights: npt.NDArray[np.float64], number: float) -> int:
    """Index whose share of the cumulated weights holds `number`."""
    upto = np.cumsum(weights)
    return min(int(np.searchsorted(upto, number * upto[-1], "right")), len(upto) - 1)
