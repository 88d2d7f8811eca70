"""The sampler once more, the slow and plain way: one row, numpy, everything sorted."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from neurond.device.sampler import uniform
from neurond.device.sequence import Sequence

Values = npt.NDArray[Any]


def draw(logits: Values, sequence: Sequence) -> int:
    """The next token of the sequence."""
    submit = sequence.submit
    sampling = submit.sampling
    scores = _edited(logits, sequence)
    if sampling.temperature < 1e-5:
        return int(scores.argmax())
    scores /= np.float32(sampling.temperature)
    scores = _typical(scores, sampling.typical_p)
    weights = np.exp((scores - scores.max()).astype(np.float64))
    weights[weights < sampling.min_p] = 0
    ids = np.lexsort((np.arange(len(weights)), -weights))
    ids = ids[: sampling.top_k or len(ids)]
    before = np.cumsum(weights[ids]) - weights[ids]
    inside = (before < sampling.top_p * weights[ids].sum()) & (weights[ids] > 0)
    inside[0] = True
    ids = ids[inside]
    upto = np.cumsum(weights[ids])
    share = uniform(submit.seed, submit.choice, sequence.num_emitted) * upto[-1]
    return int(ids[min(int((upto <= share).sum()), len(ids) - 1)])


def _edited(logits: Values, sequence: Sequence) -> Values:
    sampling = sequence.submit.sampling
    scores = logits.astype(np.float32, copy=True)
    for token, bias in sampling.logit_bias:
        scores[token] += np.float32(bias)
    scores[list(sequence.banned_ids)] = -np.inf
    emitted = sequence.ids[sequence.submit.num_prompt :]
    for token in set(sequence.ids):
        penalty = np.float32(sampling.repetition_penalty)
        old = scores[token]
        scores[token] = old / penalty if old > 0 else old * penalty
    for token in set(emitted):
        scores[token] -= np.float32(sampling.presence_penalty)
        times = np.float32(emitted.count(token))
        scores[token] -= np.float32(sampling.frequency_penalty) * times
    return scores


def _typical(scores: Values, mass: float) -> Values:
    if mass >= 1:
        return scores
    weights = np.exp((scores - scores.max()).astype(np.float64))
    chances = weights / weights.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(chances)
        entropy = np.nansum(chances * surprise)
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    before = np.cumsum(chances[order]) - chances[order]
    inside = before < mass
    inside[0] = True
    kept = np.full_like(scores, -np.inf)
    kept[order[inside]] = scores[order[inside]]
    return kept
