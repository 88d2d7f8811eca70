"""An answer as a stream of frames, or as a whole, whatever the dialect.

Front-end worker. Frames that are ready together leave together; after a second of
silence a comment keeps the connection alive (S68). The stream ends in exactly one
terminal event: finish reasons, usage if asked for and [DONE], or an error (never both).

Invariant: a bug here ends the client's stream with an error event, not with silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from ipc.errors import ServiceError, error_for
from ipc.journal import Journal
from neurond.serving import edge, openai
from neurond.serving.choice import Shown
from neurond.serving.generation import Generation, Usage

KEEP_ALIVE_S = 1.0


class Frames(Protocol):
    """A dialect's frames of one stream, each with its blank line; b"" for none."""

    def begin(self, index: int) -> bytes:
        """Once per choice, before anything else of it."""

    def shown(self, index: int, shown: Shown) -> bytes:
        """What has come of a choice since the last time."""

    def finish(self, index: int, reason: str) -> bytes:
        """Once per choice, at its end."""

    def usage(self, usage: Usage) -> bytes:
        """The figures, behind the last choice."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """`count_usage`: the caller is a gateway that wants the figures as a comment."""

    include_usage: bool
    count_usage: bool
    request_id: str
    on_text: Callable[[], None]
    is_stopping: Callable[[], bool]


class AnswerStream:
    def __init__(
        self,
        generation: Generation,
        frames: Frames,
        options: StreamOptions,
        journal: Journal,
    ) -> None:
        self._generation = generation
        self._frames = frames
        self._options = options
        self._journal = journal
        self._finished: set[int] = set()

    async def frames(self) -> AsyncIterator[bytes]:
        """What the client reads, one or more whole frames at a time."""
        try:
            yield b"".join(map(self._frames.begin, range(self._num_choices)))
            async for data in self._body():
                yield data
        except asyncio.CancelledError:
            if self._options.is_stopping():  # the drain is over: say so before the cut
                error = error_for("shutting_down", "the node stopped meanwhile")
                yield self._error(error)
            raise
        except Exception as bug:  # resource border
            error = edge.as_service_error(bug)
            edge.report(self._journal, error, self._options.request_id)
            yield self._error(error)

    @property
    def _num_choices(self) -> int:
        return len(self._generation.choices)

    async def _body(self) -> AsyncIterator[bytes]:
        generation = self._generation
        while True:
            data = self._ready()
            if data:
                yield data
                continue  # while that was sent, more may have come
            if generation.error is not None:
                raise generation.error
            if generation.ended:
                break
            if not await generation.changed(KEEP_ALIVE_S):
                yield openai.KEEP_ALIVE
        yield self._end()

    def _ready(self) -> bytes:
        """The frames for everything that came since the last look."""
        parts: list[bytes] = []
        for index, choice in enumerate(self._generation.choices):
            shown = choice.take()
            if shown:
                self._options.on_text()
                parts.append(self._frames.shown(index, shown))
            if choice.finish is not None and index not in self._finished:
                self._finished.add(index)
                parts.append(self._frames.finish(index, choice.finish))
        return b"".join(parts)

    def _end(self) -> bytes:
        usage = self._generation.usage
        asked = self._frames.usage(usage) if self._options.include_usage else b""
        finish = self._generation.choices[0].finish or "stop"
        return asked + self._counted(finish) + openai.DONE

    def _error(self, error: ServiceError) -> bytes:
        event = openai.error_event(error, self._options.request_id)
        return self._counted("error") + event

    def _counted(self, finish: str) -> bytes:
        if not self._options.count_usage:
            return b""
        return openai.usage_comment(self._generation.usage, finish)


async def whole_answer(generation: Generation) -> list[tuple[Shown, str]]:
    """Wait for the end: what each choice shows, and its finish reason.

    Raises ServiceError, so that the status is a true one.
    """
    while not generation.ended:
        await generation.changed(KEEP_ALIVE_S)
    if generation.error is not None:
        raise generation.error
    return [(c.take(), c.finish or "stop") for c in generation.choices]
