"""Which sequences the next forward computes.

Device process, torch-free, pure. The running sequences form a ring; the head decides
the kind of step: a chunk of its own prefill, or one decode row for it and for every
other sequence of its model that decodes, up to the rows a forward takes. Who was
computed goes to the tail, so prefill and decode alternate and nobody starves.
"""

from __future__ import annotations

from collections.abc import Iterable

from neurond.device.backend import Work
from neurond.device.sequence import Sequence


def plan(running: Iterable[Sequence], *, max_rows: int, chunk: int) -> list[Work]:
    """The next step's work, empty when nobody runs."""
    order = list(running)
    if not order:
        return []
    head = order[0]
    if head.submit.embed:
        return _whole_texts(order, max_rows=max_rows, max_tokens=chunk)
    if head.num_pending > 1:
        return [Work(head, min(head.num_pending, chunk))]
    rows = [s for s in order if s.model is head.model and s.num_pending == 1]
    return [Work(sequence, 1) for sequence in rows[:max_rows]]


def _whole_texts(
    order: Iterable[Sequence], *, max_rows: int, max_tokens: int
) -> list[Work]:
    """The head's text and others of its model, never in pieces; `max_tokens` of them,
    or the head's alone where that is longer."""
    works: list[Work] = []
    num_tokens = 0
    for sequence in order:
        if works and sequence.model is not works[0].sequence.model:
            continue
        num_tokens += sequence.num_pending
        if works and (num_tokens > max_tokens or len(works) == max_rows):
            break
        works.append(Work(sequence, sequence.num_pending))
    return works
