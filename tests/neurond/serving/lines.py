"""A device's end written down: what was submitted, in order."""

from __future__ import annotations

from typing import Any

from ipc.errors import ServiceError
from ipc.messages import (
    Cancel,
    PromptScores,
    RingDown,
    Sampling,
    Submit,
    TopScores,
)
from ipc.ring import RecordTooLarge, RingFull


class Line:
    """A channel that keeps what it is given, or refuses it; `limit`: how much."""

    def __init__(self, generation: int = 1) -> None:
        self.generation = generation
        self.sent: list[RingDown] = []
        self.refusal: Exception | None = None
        self.limit: int | None = None
        self.too_large: set[int] = set()

    def submit(self, message: RingDown) -> None:
        if self.refusal is not None:
            raise self.refusal
        if self.limit is not None and len(self.sent) >= self.limit:
            raise RingFull
        if message.id in self.too_large:
            raise RecordTooLarge
        self.sent.append(message)

    @property
    def submitted(self) -> list[int]:
        return [m.id for m in self.sent if isinstance(m, Submit)]

    @property
    def cancelled(self) -> list[int]:
        return [m.id for m in self.sent if isinstance(m, Cancel)]


class Heard:
    """A sink that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []

    def on_accepted(self, position: int, cached: int) -> None:
        self.events.append(("accepted", cached))

    def on_tokens(
        self,
        ids: tuple[int, ...],
        logprobs: tuple[float, ...],
        top: tuple[TopScores, ...],
    ) -> None:
        self.events.append(("tokens", ids))
        if logprobs:
            self.events.append(("logprobs", (logprobs, top)))

    def on_scores(self, scores: PromptScores) -> None:
        self.events.append(("scores", (scores.start, scores.logprobs)))

    def on_vector(self, values: bytes) -> None:
        self.events.append(("vector", values))

    def on_finished(self, reason: str, cached: int) -> None:
        self.events.append(("finished", reason))

    def on_failed(self, error: ServiceError) -> None:
        self.events.append(("failed", error.code))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]


def submit(ids: tuple[int, ...] = (1, 2, 3), **sampling: Any) -> Submit:
    return Submit(
        id=0, attempt=0, model="m", ids=ids, num_prompt=len(ids), choice=0, seed=7,
        sampling=Sampling(**sampling), max_tokens=100, stop_ids=(), grammar="",
        principal="", priority=100, deadline_s=0.0, cache_salt="",
    )  # fmt: skip
