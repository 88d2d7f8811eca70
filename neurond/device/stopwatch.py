"""How fast a model that is ready prefills, measured before it serves.

Device process. A prompt of up to 64 tokens is computed as a request's would be, up to
three times and only as often as matters: the best counts, since a host that is busy
with something else makes any of them slower and none faster.

Invariant: nothing of it is left in the model.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from itertools import cycle, islice

import torch

from neurond.device.backend import Resident, Work
from neurond.device.computing import Computing
from neurond.device.layout import TRIAL_IDS
from neurond.device.trial import sequence_of
from neurond.device.turns import clock, in_turns

_TOKENS = 64
_MOST_RUNS = 3
_AMPLE = 2.0


def measure(
    model: Resident, computing: Computing, target_s: float
) -> Generator[None, None, float]:
    """Prompt tokens a second; one run is enough where it is ample for `target_s`.

    Yields between slices.
    """
    return (yield from in_turns(partial(_best, model, computing, target_s)))


def _best(model: Resident, computing: Computing, target_s: float) -> float:
    ids = _ids(model, computing)
    best = 0.0
    for _ in range(_MOST_RUNS):
        best = max(best, len(ids) / _seconds(model, computing, ids))
        if best * target_s >= _AMPLE * model.context or not target_s:
            break
    return best


def _ids(model: Resident, computing: Computing) -> tuple[int, ...]:
    spec = computing.spec
    count = min(_TOKENS, model.context, spec.max_pages * spec.page_tokens)
    return tuple(islice(cycle(TRIAL_IDS), count))


@torch.inference_mode()
def _seconds(model: Resident, computing: Computing, ids: tuple[int, ...]) -> float:
    pages = range(-(-len(ids) // computing.spec.page_tokens))
    sequence = sequence_of(model, list(pages), ids)
    try:
        begun_s = clock()
        computing.compute([Work(sequence, len(ids))]).of(0).cpu()
        return clock() - begun_s
    finally:
        computing.release(sequence)
        computing.clear_pages(pages)
