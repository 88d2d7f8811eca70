"""One choice of an answer: the ids of one sequence become text that may be shown.

Front-end worker; the sink of a request-table entry. Ids are turned into text when they
arrive, so a stop string ends the work on the device at once, whoever reads slowly; a
reader takes what has gathered since it last looked.

Invariant: the text taken, put together, is the answer's text, whatever the pace of the
reader; `finish` or `error` is set once, after which the text is complete.
"""

from __future__ import annotations

from collections.abc import Callable

from ipc.errors import ServiceError, error_for
from neurond.serving.detokenize import Detokenizer
from neurond.serving.stops import StopBuffer

MAX_BACKLOG_CHARS = 1 << 20
MAX_STALL_S = 60.0


class Choice:
    """`on_change` is called when there is something to take, `on_stop` when the
    device has to stop working for it. `paced`: somebody reads while it grows."""

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: StopBuffer,
        *,
        paced: bool,
        clock: Callable[[], float],
        on_change: Callable[[], None],
        on_stop: Callable[[Choice], None],
    ) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self._paced = paced
        self._clock = clock
        self._on_change = on_change
        self._on_stop = on_stop
        self._pending: list[str] = []
        self._pending_chars = 0
        self._pending_since_s = 0.0
        self.accepted = False
        self.num_cached = 0
        self.num_tokens = 0
        self.finish: str | None = None
        self.error: ServiceError | None = None

    @property
    def ended(self) -> bool:
        return self.finish is not None or self.error is not None

    def take(self) -> str:
        """The text since the last call."""
        text = "".join(self._pending)
        self._pending.clear()
        self._pending_chars = 0
        return text

    def on_accepted(self, _position: int, cached: int) -> None:
        self.accepted = True
        self.num_cached = cached
        self._on_change()

    def on_tokens(self, ids: tuple[int, ...]) -> None:
        for token in ids:
            self.num_tokens += 1
            text, stopped = self._stops.push(self._detokenizer.push((token,)))
            self._show(text)
            if stopped:
                self.finish = "stop"
                break
        if self.finish is None and self._unread():
            self.error = error_for("overloaded", "the answer was not read in time")
        if self.ended:
            self._on_stop(self)
        self._on_change()

    def on_finished(self, reason: str, cached: int) -> None:
        self._show(self._stops.flush())
        self.num_cached = cached
        self.finish = reason
        self._on_change()

    def on_failed(self, error: ServiceError) -> None:
        self._show(self._stops.flush())
        self.error = error
        self._on_change()

    def _show(self, text: str) -> None:
        if not text:
            return
        if not self._pending:
            self._pending_since_s = self._clock()
        self._pending.append(text)
        self._pending_chars += len(text)

    def _unread(self) -> bool:
        if not self._paced or not self._pending:
            return False
        stalled_s = self._clock() - self._pending_since_s
        return self._pending_chars > MAX_BACKLOG_CHARS or stalled_s > MAX_STALL_S
