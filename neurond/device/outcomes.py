"""What a step's rows are to the workers: messages, in the order of what happened.

Device process, torch-free, pure.
"""

from __future__ import annotations

from ipc.messages import Progress, PromptScores, RingUp, TokenRow, Tokens, Vector
from neurond.device.backend import Row
from neurond.device.sequence import Sequence

Addressed = tuple[int, RingUp]
"""A message and the worker it is for."""

_SCORES_PER_MESSAGE = 64
"""A chunk's, with twenty candidates each, would be too large for a ring."""


class Outbox:
    """One step's messages: a Tokens record per worker between what led to it and what
    it ended."""

    def __init__(self) -> None:
        self._before: list[Addressed] = []
        self._rows: dict[int, list[TokenRow]] = {}
        self._after: list[Addressed] = []

    def scores(self, sequence: Sequence, begin: int, row: Row) -> None:
        """Of the prompt tokens from `begin` on, less those told before a preemption."""
        start = max(begin, 1)
        told = max(0, sequence.num_scored - start)
        entries = row.prompt[told:]
        for at in range(0, len(entries), _SCORES_PER_MESSAGE):
            part = entries[at : at + _SCORES_PER_MESSAGE]
            logprobs, top = zip(*part, strict=True)
            tops = top if sequence.submit.sampling.prompt_logprobs > 0 else ()
            place = start + told + at
            message = PromptScores(sequence.id, place, logprobs, tops)
            self._before.append((sequence.worker, message))
        sequence.num_scored = max(sequence.num_scored, start + len(row.prompt))

    def token(self, sequence: Sequence, start: int, row: Row) -> None:
        """Its token was appended as number `start` of the emitted ones."""
        assert row.token is not None
        wanted = sequence.submit.sampling.logprobs
        logprobs = (row.logprob or 0.0,) if wanted >= 0 else ()
        tops = (row.top,) if wanted > 0 else ()
        entry = TokenRow(sequence.id, start, (row.token,), logprobs, tops)
        self._rows.setdefault(sequence.worker, []).append(entry)

    def progress(self, sequence: Sequence) -> None:
        done, total = sequence.num_computed, len(sequence.ids)
        self._after.append((sequence.worker, Progress(sequence.id, done, total)))

    def vector(self, sequence: Sequence, values: bytes) -> None:
        self._before.append((sequence.worker, Vector(sequence.id, values)))

    def end(self, message: Addressed) -> None:
        self._after.append(message)

    def messages(self) -> list[Addressed]:
        tokens = [(worker, Tokens(tuple(rows))) for worker, rows in self._rows.items()]
        return [*self._before, *tokens, *self._after]
