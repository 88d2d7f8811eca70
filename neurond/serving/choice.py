"""One choice of an answer: the ids of one sequence become text that may be shown.

Front-end worker; the sink of a request-table entry. Ids are turned into text when they
arrive, so a stop string ends the work on the device at once, whoever reads slowly; a
reader takes what has gathered since it last looked. Tokens' log probabilities come
with the text that they belong to.

Invariant: the text taken, put together, is the answer's text, whatever the pace of the
reader; `finish` or `error` is set once, after which the text is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ipc.errors import ServiceError, error_for
from ipc.messages import PromptScores, Submit, TopScores
from neurond.serving.detokenize import Detokenizer, Pieces
from neurond.serving.logprobs import Score, ScoreBuffer, score_of
from neurond.serving.stops import StopBuffer

MAX_BACKLOG_CHARS = 1 << 20
MAX_STALL_S = 60.0
_ENTRY_CHARS = 64
"""What one token with its log probability takes in a frame, about."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to run: `submit` once per choice. `paced`: somebody reads while it grows."""

    submit: Submit
    num_choices: int
    stops: tuple[str, ...]
    pieces: Pieces
    paced: bool


class Shown(NamedTuple):
    """What may be shown of a choice; `scores` of the tokens that end in `text`."""

    text: str
    scores: list[Score]

    def __bool__(self) -> bool:
        return bool(self.text or self.scores)


class Choice:
    """`on_change` is called when there is something to take, `on_stop` when the
    device has to stop working for it."""

    def __init__(
        self,
        order: Order,
        *,
        clock: Callable[[], float],
        on_change: Callable[[], None],
        on_stop: Callable[[Choice], None],
    ) -> None:
        self._pieces = order.pieces
        self._detokenizer = Detokenizer(order.pieces)
        self._stops = StopBuffer(order.stops)
        self._min_tokens = order.submit.sampling.min_tokens
        self._paced = order.paced
        self._clock = clock
        self._on_change = on_change
        self._on_stop = on_stop
        self._pending: list[str] = []
        self._scores: list[Score] = []
        self._held = ScoreBuffer()
        self._num_decoded = 0
        self._num_shown = 0
        self._pending_chars = 0
        self._pending_since_s = 0.0
        self.accepted = False
        self.num_cached = 0
        self.num_tokens = 0
        self.prompt_scores: list[PromptScores] = []
        self.finish: str | None = None
        self.error: ServiceError | None = None

    @property
    def ended(self) -> bool:
        return self.finish is not None or self.error is not None

    def take(self) -> Shown:
        """What may be shown and was not taken before."""
        shown = Shown("".join(self._pending), self._scores)
        self._pending.clear()
        self._scores = []
        self._pending_chars = 0
        return shown

    def on_accepted(self, _position: int, cached: int) -> None:
        self.accepted = True
        self.num_cached = cached
        self._on_change()

    def on_tokens(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float],
        top: Sequence[TopScores],
    ) -> None:
        for index, token in enumerate(ids):
            if logprobs:
                others = top[index] if top else ()
                text = self._scored(token, logprobs[index], others)
            else:
                text = self._detokenizer.push((token,))
            self.num_tokens += 1
            if self._stopped_by(text):
                self.finish = "stop"
                break
        if self.finish is None and self._unread():
            self.error = error_for("overloaded", "the answer was not read in time")
        if self.ended:
            self._on_stop(self)
        self._on_change()

    def on_scores(self, scores: PromptScores) -> None:
        self.prompt_scores.append(scores)
        self._on_change()

    def on_vector(self, _values: bytes) -> None:
        """A choice never asks for one."""

    def on_finished(self, reason: str, cached: int) -> None:
        self._show(self._stops.flush(), is_last=True)
        self.num_cached = cached
        self.finish = reason
        self._on_change()

    def on_failed(self, error: ServiceError) -> None:
        self._show(self._stops.flush(), is_last=True)
        self.error = error
        self._on_change()

    def _scored(self, token: int, logprob: float, top: TopScores) -> str:
        """The text of a token, whose score waits for it to be shown."""
        first = self._detokenizer.first
        score = score_of(self._pieces, token, logprob, top, first=first)
        text = self._detokenizer.push((token,))
        self._num_decoded += len(text)
        # the character that is not whole yet will be one more
        self._held.hold(score, self._num_decoded + self._detokenizer.is_split)
        return text

    def _stopped_by(self, text: str) -> bool:
        """Show what may be shown of it; True when a stop string is complete.

        None is looked for before the answer has `min_tokens`.
        """
        if self.num_tokens < self._min_tokens:
            self._show(text)
            return False
        text, stopped = self._stops.push(text)
        self._show(text)
        return stopped

    def _show(self, text: str, *, is_last: bool = False) -> None:
        self._num_shown += len(text)
        num_chars = len(text) + (self._release(is_last) if self._held.waiting else 0)
        if not num_chars:
            return
        if not self._pending_chars:
            self._pending_since_s = self._clock()
        self._pending.append(text)
        self._pending_chars += num_chars

    def _release(self, is_last: bool) -> int:
        """Show the scores that are due; what they take in a frame, in characters."""
        scores = self._held.flush() if is_last else self._held.release(self._num_shown)
        self._scores += scores
        return _ENTRY_CHARS * sum(1 + len(score.top) for score in scores)

    def _unread(self) -> bool:
        if not self._paced or not self._pending_chars:
            return False
        stalled_s = self._clock() - self._pending_since_s
        return self._pending_chars > MAX_BACKLOG_CHARS or stalled_s > MAX_STALL_S
