"""How fast a model that is ready prefills, measured before it serves.

Device process. A prompt of up to 64 tokens is computed as a request's would be, up to
three times and only as often as matters: the best counts, since a host that is busy
with something else makes any of them slower and none faster.

Invariant: nothing of it is left in the model.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from itertools import cycle, islice

import torch

from neurond.device.backend import Resident, Work
from neurond.device.computing import Computing
from neurond.device.layout import TRIAL_IDS
from neurond.device.trial import sequence_of

_TOKENS = 64
_MOST_RUNS = 3
_AMPLE = 2.0
_SLICE_S = 0.02


def measure(
    model: Resident, computing: Computing, target_s: float
) -> Generator[None, None, float]:
    """Prompt tokens a second; one run is enough where it is ample for `target_s`.

    Yields between slices.
    """
    ids = _ids(model, computing)
    best = 0.0
    for _ in range(_MOST_RUNS):
        best = max(best, len(ids) / (yield from _seconds(model, computing, ids)))
        if best * target_s >= _AMPLE * model.context or not target_s:
            break
    return best


def _ids(model: Resident, computing: Computing) -> tuple[int, ...]:
    spec = computing.spec
    count = min(_TOKENS, model.context, spec.max_pages * spec.page_tokens)
    return tuple(islice(cycle(TRIAL_IDS), count))


def _seconds(
    model: Resident, computing: Computing, ids: tuple[int, ...]
) -> Generator[None, None, float]:
    pages = range(-(-len(ids) // computing.spec.page_tokens))
    sequence = sequence_of(model, list(pages), ids)
    try:
        seconds, is_done = 0.0, False
        while not is_done:
            started_s = time.perf_counter()
            with torch.inference_mode():
                is_done = _go_on(computing, Work(sequence, len(ids)))
            seconds += time.perf_counter() - started_s
            yield
        return seconds
    finally:
        computing.release(sequence)
        with torch.inference_mode():
            computing.clear_pages(pages)


def _go_on(computing: Computing, work: Work) -> bool:
    """Whether it is done, and read."""
    logits = computing.go_on(work, _SLICE_S)
    if logits is not None:
        logits.of(0).cpu()
    return logits is not None
