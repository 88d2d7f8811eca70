"""One client's inputs while their vectors are computed: some at a time, in any order.

Front-end worker. Each input is an entry of the request table; only so many are in
flight at once, so that one long list takes neither the worker's queue nor the device's.

    inputs ─▶ waiting ─▶ in flight ─▶ vectors        all of them, or the first error
                 └◀─ queue full ─┘                   once any of them was accepted

A device whose queue is full refuses a list of which it took nothing. One that it has
begun is gone on with in fewer places, which grow again with each vector, and from time
to time where none is left.

Invariants: after `close` no entry of it is in flight; any other error of one input is
the whole answer's and ends the others.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from ipc.errors import ServiceError, error_for
from ipc.messages import PromptScores, Submit, TopScores
from neurond.serving.entries import Channel, Entry, silence
from neurond.serving.generation import Usage
from neurond.serving.requests import RequestTable

MAX_IN_FLIGHT = 16
_LEAST_PAUSE_S = 0.05
_MOST_PAUSE_S = 1.0
Encode = Callable[[bytes], bytes]
"""A vector to what the answer holds of it; done as each comes, not all at the end."""


class Gathering:
    def __init__(
        self,
        table: RequestTable,
        encode: Encode,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._encode = encode
        self._clock = clock
        self._waiting: deque[_Part] = deque()
        self._in_flight: dict[_Part, Entry] = {}
        self._parts: list[_Part] = []
        self._line: tuple[str, Channel] | None = None
        self._news = asyncio.Event()
        self._any_accepted = False
        self._num_places = MAX_IN_FLIGHT
        self._pause_s = _LEAST_PAUSE_S
        self._progress_s = 0.0
        self._refusal: ServiceError | None = None
        self.error: ServiceError | None = None

    def start(self, submits: Sequence[Submit], device: str, channel: Channel) -> None:
        """Raises ServiceError when not even the first one can be sent."""
        self._parts = [_Part(self, submit) for submit in submits]
        self._waiting.extend(self._parts)
        self._line = device, channel
        self._fill()
        if self.error is not None:
            raise self.error

    @property
    def ended(self) -> bool:
        return self.error is not None or all(part.done for part in self._parts)

    @property
    def usage(self) -> Usage:
        return Usage(sum(part.submit.num_prompt for part in self._parts), 0, 0)

    async def result(self, *, decision_s: float, silence_s: float) -> list[bytes]:
        """Every vector, encoded, in order.

        The first input must be accepted within `decision_s`; then something must
        happen every `silence_s`, unless the device died: the table knows how long that
        is waited for. Raises ServiceError.
        """
        while not self.ended:
            self._news.clear()
            limit_s = silence_s if self._any_accepted else decision_s
            try:
                is_shut_out = self._refusal is not None and not self._in_flight
                pause_s = self._pause_s if is_shut_out else limit_s
                await asyncio.wait_for(self._news.wait(), pause_s)
            except TimeoutError as silent:
                if is_shut_out:
                    self._try_again(silence_s)
                    continue
                delayed = self._is_delayed
                waits = self._any_accepted and delayed
                if not (waits or self._news.is_set()):
                    raise silence(delayed=delayed) from silent
        if self.error is not None:
            raise self.error
        return [part.encoded for part in self._parts]

    def close(self) -> None:
        entries = list(self._in_flight.values())
        self._in_flight.clear()
        for entry in entries:
            self._table.cancel(entry)

    # -- what the parts tell

    def on_accepted(self) -> None:
        self._any_accepted = True
        self._go_on()

    def on_done(self, part: _Part, values: bytes) -> None:
        self._in_flight.pop(part, None)
        part.encoded = self._encode(values)
        self._num_places = min(self._num_places + 1, MAX_IN_FLIGHT)
        self._fill()
        self._go_on()

    def on_failed(self, part: _Part, error: ServiceError) -> None:
        self._in_flight.pop(part, None)
        if self._is_full(error):
            self._waiting.appendleft(part)
        else:
            self._fail(error)

    def _go_on(self) -> None:
        self._progress_s = self._clock()
        self._pause_s = _LEAST_PAUSE_S
        self._news.set()

    def _is_full(self, error: ServiceError) -> bool:
        """Whether that is all; then what waits is sent later, in fewer places."""
        if error.code != "queue_full" or not (self._in_flight or self._any_accepted):
            return False
        self._num_places = max(1, len(self._in_flight))
        self._refusal = error
        self._news.set()
        return True

    def _try_again(self, silence_s: float) -> None:
        """Others have every place. Raises ServiceError: for too long."""
        if self._refusal and self._clock() - self._progress_s > silence_s:
            raise self._refusal
        self._pause_s = min(2 * self._pause_s, _MOST_PAUSE_S)
        self._refusal = None
        self._fill()

    @property
    def _is_delayed(self) -> bool:
        return any(entry.is_delayed for entry in self._in_flight.values())

    def _fill(self) -> None:
        """Send what there is room for; a full queue is waited out behind our own."""
        while self._waiting and len(self._in_flight) < self._num_places:
            try:
                self._send(self._waiting[0])
            except ServiceError as error:
                if not self._is_full(error):
                    self._fail(error)
                return
            self._waiting.popleft()

    def _send(self, part: _Part) -> None:
        if self._line is not None:
            is_under_way = self._any_accepted or bool(self._in_flight)
            entry = self._table.submit(
                *self._line, part.submit, part, may_park=is_under_way
            )
            self._in_flight[part] = entry

    def _fail(self, error: ServiceError) -> None:
        self.error = self.error or error
        self.close()
        self._news.set()


class _Part:
    """One input; the sink of its entry."""

    __slots__ = ("_gathering", "_values", "encoded", "submit")

    def __init__(self, gathering: Gathering, submit: Submit) -> None:
        self._gathering = gathering
        self._values: bytes | None = None
        self.submit = submit
        self.encoded = b""

    @property
    def done(self) -> bool:
        return bool(self.encoded)

    def on_accepted(self, _position: int, _cached: int) -> None:
        self._gathering.on_accepted()

    def on_vector(self, values: bytes) -> None:
        self._values = values

    def on_tokens(
        self,
        _ids: tuple[int, ...],
        _logprobs: tuple[float, ...] = (),
        _top: tuple[TopScores, ...] = (),
    ) -> None:
        """No tokens come for a vector; a device that sends some sends no vector."""

    def on_scores(self, _scores: PromptScores) -> None:
        pass

    def on_finished(self, _reason: str, _cached: int) -> None:
        if self._values is not None:
            self._gathering.on_done(self, self._values)
            return
        words = "the device gave no vector for an input"
        self._gathering.on_failed(self, error_for("internal_error", words))

    def on_failed(self, error: ServiceError) -> None:
        self._gathering.on_failed(self, error)
