"""An entry of the request table: its life, and what it needs to be asked for again.

Front-end worker (and the gateway's, for a local node); data and pure functions. The ids
that a client was told stay with the entry, so that another life of the device, or
another device, goes on behind them (D6, D7).

    submitted ─accepted▶ accepted ─finished▶ ended      down: parked, from any state
        ▲                    ▲                          cancel, failed, convicted: ended
        │         resumed ───┘ accepted
        └─ parked ─up─▶ │      lost (nobody will go on with it): ended

Invariant: a missing cell is a device that breaks the protocol.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

from ipc.errors import ServiceError, error_for
from ipc.messages import PromptScores, RingDown, Submit, TopScores

_TRIAL_TOKENS = 2
"""How far beyond its place at the death a suspect is tried."""


class State(Enum):
    SUBMITTED = "submitted"
    ACCEPTED = "accepted"
    PARKED = "parked"
    """Its device is gone."""
    RESUMED = "resumed"
    """Submitted again and not accepted yet."""
    ENDED = "ended"


NEXT: dict[tuple[State, str], State] = {
    (State.SUBMITTED, "accepted"): State.ACCEPTED,
    (State.SUBMITTED, "failed"): State.ENDED,
    (State.SUBMITTED, "down"): State.PARKED,
    (State.SUBMITTED, "lost"): State.ENDED,
    (State.SUBMITTED, "convicted"): State.ENDED,
    (State.SUBMITTED, "cancel"): State.ENDED,
    (State.ACCEPTED, "progress"): State.ACCEPTED,
    (State.ACCEPTED, "scores"): State.ACCEPTED,
    (State.ACCEPTED, "tokens"): State.ACCEPTED,
    (State.ACCEPTED, "vector"): State.ACCEPTED,
    (State.ACCEPTED, "finished"): State.ENDED,
    (State.ACCEPTED, "failed"): State.ENDED,
    (State.ACCEPTED, "down"): State.PARKED,
    (State.ACCEPTED, "lost"): State.ENDED,
    (State.ACCEPTED, "convicted"): State.ENDED,
    (State.ACCEPTED, "cancel"): State.ENDED,
    (State.PARKED, "down"): State.PARKED,
    (State.PARKED, "up"): State.RESUMED,
    (State.PARKED, "failed"): State.ENDED,
    (State.PARKED, "lost"): State.ENDED,
    (State.PARKED, "convicted"): State.ENDED,
    (State.PARKED, "cancel"): State.ENDED,
    (State.RESUMED, "accepted"): State.ACCEPTED,
    (State.RESUMED, "failed"): State.ENDED,
    (State.RESUMED, "down"): State.PARKED,
    (State.RESUMED, "lost"): State.ENDED,
    (State.RESUMED, "convicted"): State.ENDED,
    (State.RESUMED, "cancel"): State.ENDED,
}


class Sink(Protocol):
    """Hears of one entry. Exactly one of `on_finished`, `on_failed` comes last.

    Deaths of devices in between are not heard of. `logprobs` has one per id where they
    were asked for, else none; so has `top`. The scores of a prompt come in order,
    without gaps, from its second token on.
    """

    def on_accepted(self, position: int, cached: int) -> None: ...
    def on_tokens(
        self,
        ids: tuple[int, ...],
        logprobs: tuple[float, ...],
        top: tuple[TopScores, ...],
    ) -> None: ...
    def on_scores(self, scores: PromptScores) -> None: ...
    def on_vector(self, values: bytes) -> None: ...
    def on_finished(self, reason: str, cached: int) -> None: ...
    def on_failed(self, error: ServiceError) -> None: ...


class Channel(Protocol):
    """The way to one generation of a device."""

    @property
    def generation(self) -> int: ...
    def submit(self, message: RingDown) -> None: ...


@dataclass(slots=True, eq=False)
class Entry:
    """`submit` is the last one sent; `channel` is None while it is parked.

    `device` and `generation` are of the life that had it last.
    """

    submit: Submit
    device: str
    generation: int
    sink: Sink
    channel: Channel | None
    emitted: list[int] = field(default_factory=list)
    state: State = State.SUBMITTED
    num_scored: int = 1
    """Prompt tokens whose scores were told; the first has none."""
    due_score: int = 1
    """The prompt token whose score comes next in this attempt."""
    has_vector: bool = False
    cached: int | None = None
    """Prompt tokens that the device had when it first accepted."""
    first_attempt: int = 0
    """Which attempt that was."""
    parked_s: float = 0.0
    num_breaks: int = 0
    """Channels that broke since anything came of it."""

    @property
    def is_delayed(self) -> bool:
        """Its device died; whether it is back is not known."""
        return self.state in (State.PARKED, State.RESUMED)

    @property
    def num_left(self) -> int:
        """Tokens that may still come."""
        return max(0, self.submit.max_tokens - len(self.emitted))

    def suspect(self, group: int) -> None:
        """Have it tried in that group, past the place where its device died."""
        until = len(self.emitted) + _TRIAL_TOKENS
        self.submit = replace(self.submit, trial_group=group, trial_until=until)

    def again(self) -> Submit:
        """The next attempt: everything that was told is given."""
        submit = self.submit
        ids = (*submit.ids[: submit.num_prompt], *self.emitted)
        return replace(submit, ids=ids, attempt=submit.attempt + 1)

    def resumed(self, submit: Submit, channel: Channel) -> None:
        """That attempt is on its way."""
        self.submit = submit
        self.channel = channel
        self.generation = channel.generation
        self.due_score = 1

    def accepted(self, cached: int) -> bool:
        """Whether that is news to the client."""
        if self.cached is not None:
            return False
        self.cached, self.first_attempt = cached, self.submit.attempt
        return True

    def num_cached(self, told: int) -> int:
        """Of the first attempt: those behind it find what the client paid for."""
        if self.cached is None or self.submit.attempt == self.first_attempt:
            return told
        return self.cached

    def score(self, scores: PromptScores) -> PromptScores | None:
        """Book them; what of them was not told before, if anything."""
        end = scores.start + len(scores.logprobs)
        skip = self.num_scored - scores.start
        self.due_score = end
        if end <= self.num_scored:
            return None
        self.num_scored = end
        if skip <= 0:
            return scores
        return replace(
            scores,
            start=scores.start + skip,
            logprobs=scores.logprobs[skip:],
            top=scores.top[skip:],
        )


def silence(*, delayed: bool) -> ServiceError:
    """No decision came in time; `delayed`: because the device died."""
    if delayed:
        words = "the device died before it took the request and isn't back yet"
        return error_for("model_recovering", words)
    return error_for("overloaded", "the device gave no sign in time")
