"""From a forward's logits to one outcome per work.

Device process. Rows that draw go to the sampler together; prompts that are scored are
scored a work at a time. An id is scored by the logits behind the id before it, so a
prompt computed in chunks keeps the last row of each for the next, and the one before
for a step that is repeated.

Invariant: what is wrong with a row is that row's outcome.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing
from dataclasses import replace

import numpy as np
import torch

from ipc.errors import ServiceError
from neurond.device import edits, scores
from neurond.device.backend import Outcome, Row, Work
from neurond.device.batch import wants_scores
from neurond.device.computing import Logits, held
from neurond.device.sampler import Sampler
from neurond.device.scores import Score


def drawing(works: Listing[Work]) -> list[int]:
    """Indices of the works that a token comes out of, in order."""
    return [
        index
        for index, work in enumerate(works)
        if work.draws and work.sequence.submit.max_tokens > 0
    ]


def outcomes(
    works: Listing[Work],
    logits: Logits,
    sampler: Sampler,
    bitmask: edits.Bitmask | None = None,
) -> list[Outcome]:
    """In the order of the works; `bitmask` has a row for each that draws."""
    found: list[Outcome] = [Row()] * len(works)
    indices = drawing(works)
    if indices:
        drawn = sampler.draw(
            _last_rows(logits, indices),
            [works[index].sequence for index in indices],
            bitmask,
        )
        for index, outcome in zip(indices, drawn, strict=True):
            found[index] = outcome
    for index, work in enumerate(works):
        if wants_scores(work):
            found[index] = _with_scores(found[index], work, logits.of(index))
    return found


def _last_rows(logits: Logits, indices: Listing[int]) -> torch.Tensor:
    last = [sum(logits.spans[index]) - 1 for index in indices]
    if last == list(range(logits.rows.shape[0])):
        return logits.rows
    index = edits.upload(np.asarray(last), logits.rows.device)
    return logits.rows.index_select(0, index)


def _with_scores(outcome: Outcome, work: Work, rows: torch.Tensor) -> Outcome:
    if isinstance(outcome, ServiceError):
        return outcome
    try:
        return replace(outcome, prompt=_score(work, rows))
    except ServiceError as error:
        return error


def _score(work: Work, rows: torch.Tensor) -> tuple[Score, ...]:
    """Of the prompt ids of the work, but for the very first; `rows` are behind them."""
    sequence = work.sequence
    submit = sequence.submit
    mine = held(sequence)
    first, behind = sequence.num_computed + 1, rows[:-1]
    before = mine.tails.get(sequence.num_computed)
    if before is not None:
        first, behind = first - 1, torch.cat((before, behind))
    end = sequence.num_computed + work.num_ids
    ids = sequence.ids[first : min(end, submit.num_prompt)]
    found = scores.prompt_scores(
        behind[: len(ids)], ids, submit.sampling.prompt_logprobs
    )
    mine.tails = {} if before is None else {sequence.num_computed: before}
    if end < submit.num_prompt:
        mine.tails[end] = rows[-1:].clone()
    return found
