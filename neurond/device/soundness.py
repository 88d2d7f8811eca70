"""Whether what a chunk of prefill has left in the pool is finite, before it is shared.

Device process. One layer is looked at, the last that keeps KV: what isn't finite in a
layer before it, be it a key or a hidden state, makes the hidden state of its position
NaN, which stays so to the end and shows in the keys there.

Invariant: the check costs a look at the chunk's own tokens in one layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Listing

import torch

from neurond.device.backend import Outcome, Row, Work
from neurond.device.batch import clip, runs_of
from neurond.device.computing import Computing
from neurond.device.pool import Pool
from neurond.device.verdict import nan_error


def judge(model: Computing, works: Listing[Work], found: list[Outcome]) -> None:
    """Fail those whose chunk isn't finite, where others may come to share it.

    Chunks that a token is drawn behind are judged too: layers with a window may not
    see their beginning from there.
    """
    chunks = [
        index
        for index, (work, outcome) in enumerate(zip(works, found, strict=True))
        if isinstance(outcome, Row)
        and not outcome.paused
        and (work.num_ids > 1 or outcome.token is None)
    ]
    for at in model.unsound([works[index] for index in chunks]):
        found[chunks[at]] = nan_error()


def unsound(pool: Pool, works: Listing[Work]) -> list[int]:
    """Indices of the works whose tokens are not finite in the pool.

    After they were computed, before they are booked. On CUDA it waits for the device.
    """
    told = [torch.stack(list(_finite(pool, work))).all() for work in works]
    verdicts: list[bool] = torch.stack(told).tolist() if told else []
    return [index for index, sound in enumerate(verdicts) if not sound]


def _finite(pool: Pool, work: Work) -> Iterator[torch.Tensor]:
    group, layer = [place for place in pool.place if place][-1]
    begin = work.sequence.num_computed
    end = begin + work.num_ids
    runs = runs_of(work.sequence.pages, pool.page_tokens, end)
    for first, count in clip(runs, begin, end):
        for values in group.tokens(layer):
            yield values[first : first + count].isfinite().all()
