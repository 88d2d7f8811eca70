"""What a device says of requests, record by record.

Front-end worker; a part of the request table.

Invariants: every record continues exactly where the last one of this attempt stopped,
else the entry fails, alone. What a sink was told in an earlier attempt, it isn't told
again.
"""

from __future__ import annotations

from ipc.errors import ServiceError, from_wire
from ipc.messages import (
    Accepted,
    Failed,
    Finished,
    Progress,
    PromptScores,
    RingUp,
    SlabsFree,
    TokenRow,
    Tokens,
    Vector,
)
from neurond.serving.entries import Channel, Entry, State
from neurond.serving.register import Register, send_cancel

Event = Accepted | Progress | PromptScores | Vector | Finished | Failed
"""What is said about one entry alone."""


class Hearing:
    def __init__(self, register: Register) -> None:
        self._register = register
        self._step = register.step

    def on_message(self, channel: Channel, message: RingUp) -> None:
        match message:
            case Tokens(rows=rows):
                for row in rows:
                    self._on_row(channel, row)
            case SlabsFree():
                pass  # the channel's business
            case _:
                entry = self._register.find(channel, message.id)
                if entry is not None:
                    self._on_event(entry, message)

    def _on_row(self, channel: Channel, row: TokenRow) -> None:
        entry = self._register.find(channel, row.id)
        if entry is None:
            # cancelled: what is under way passes; a lost Cancel is sent again
            send_cancel(channel, row.id)
        elif row.start != len(entry.emitted):
            self._break(entry, f"tokens at {row.start}, not {len(entry.emitted)}")
        elif not _has_scores(row, entry.submit.sampling.logprobs):
            self._break(entry, f"logprobs {len(row.logprobs)}, not {len(row.ids)}")
        elif self._step(entry, "tokens"):
            entry.emitted.extend(row.ids)
            entry.sink.on_tokens(row.ids, row.logprobs, row.top)

    def _on_event(self, entry: Entry, message: Event) -> None:
        match message:
            case Accepted(position=position, cached=cached):
                if self._step(entry, "accepted") and entry.accepted(cached):
                    entry.sink.on_accepted(position, cached)
            case Progress():
                self._step(entry, "progress")
            case PromptScores():
                self._on_scores(entry, message)
            case Vector(values=values):
                if self._step(entry, "vector") and not entry.has_vector:
                    entry.has_vector = True
                    entry.sink.on_vector(values)
            case Finished():
                self._on_finished(entry, message)
            case Failed(error=wire):
                self._on_failed(entry, from_wire(wire))

    def _on_failed(self, entry: Entry, error: ServiceError) -> None:
        """A device that is back without the model isn't the last word: the model may
        have moved meanwhile."""
        if entry.state is State.RESUMED and error.code == "no_healthy_node":
            self._step(entry, "down")
            entry.channel = None
        else:
            self._register.fail(entry, "failed", error)

    def _on_scores(self, entry: Entry, message: PromptScores) -> None:
        end = message.start + len(message.logprobs)
        due = entry.due_score
        if message.start != due or end > entry.submit.num_prompt:
            self._break(entry, f"scores {message.start} to {end}, not from {due}")
        elif self._step(entry, "scores"):
            news = entry.score(message)
            if news is not None:
                entry.sink.on_scores(news)

    def _on_finished(self, entry: Entry, message: Finished) -> None:
        if message.num_emitted != len(entry.emitted):
            emitted = f"{message.num_emitted}, not {len(entry.emitted)}"
            self._break(entry, f"finished after {emitted} tokens")
        elif self._step(entry, "finished"):
            cached = entry.num_cached(message.num_cached)
            entry.sink.on_finished(message.reason, cached)

    def _break(self, entry: Entry, reason: str) -> None:
        self._register.break_off(entry, reason)


def _has_scores(row: TokenRow, asked: int) -> bool:
    """Whether a row says what was asked for; see `Sampling.logprobs`."""
    num_scores = len(row.ids) if asked >= 0 else 0
    num_top = len(row.ids) if asked > 0 else 0
    return len(row.logprobs) == num_scores and len(row.top) in (num_scores, num_top)
