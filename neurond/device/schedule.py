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
    if head.num_pending > 1:
        return [Work(head, min(head.num_pending, chunk))]
    rows = [s for s in order if s.model is head.model and s.num_pending == 1]
    return [Work(sequence, 1) for sequence in rows[:max_rows]]
