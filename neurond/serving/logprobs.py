"""Log probabilities of an answer's tokens, until the text that they belong to is shown.

Pure; front end and gateway. A token is reported with the frame that shows the last of
its text. Text may be held back, for a split character or a stop string; so positions
are counted in characters of the answer:

    decoded  0 ─────────── shown ──────── end of a token ───▶
                             └ released    └ held: its text isn't shown yet

Invariant: scores leave in the order of the tokens, each once; what a stop string cut
off never leaves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from ipc.messages import TopScores
from neurond.serving.detokenize import Pieces

LEAST_LOGPROB = -9999.0
"""What is sent for a token that can't be drawn: JSON has no infinity."""


class Score(NamedTuple):
    """One token: its bytes, its natural logarithm, the most likely ones in its place.

    Special tokens are spelt out here, although a text doesn't show them.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


def score_of(
    pieces: Pieces, token: int, logprob: float, top: TopScores, *, first: bool
) -> Score:
    """`first`: no shown token stands before it."""
    others = [(pieces.spelt(other, first=first), value) for other, value in top]
    return Score(pieces.spelt(token, first=first), logprob, tuple(others))


class ScoreBuffer:
    """Scores that wait for their text; `waiting` has each with its token's end."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, Score]] = deque()

    def hold(self, score: Score, end_chars: int) -> None:
        """`end_chars`: characters of the answer up to the end of this token."""
        self.waiting.append((end_chars, score))

    def release(self, shown_chars: int) -> list[Score]:
        """The scores whose text is shown, now that `shown_chars` are."""
        released: list[Score] = []
        while self.waiting and self.waiting[0][0] <= shown_chars:
            released.append(self.waiting.popleft()[1])
        return released

    def flush(self) -> list[Score]:
        """The rest, once nothing can follow."""
        rest = [score for _, score in self.waiting]
        self.waiting.clear()
        return rest


def clamped(logprob: float) -> float:
    """As JSON can carry it; NaN is taken for the least."""
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB


def token_text(token: bytes) -> str:
    """Bytes that are no text by themselves are written as \\xf0: a label, not text."""
    return token.decode(errors="backslashreplace")


def chat_content(scores: Iterable[Score]) -> list[dict[str, Any]]:
    """`logprobs.content` of the chat dialect."""
    return [
        {
            **_entry(score.token, score.logprob),
            "top_logprobs": [_entry(*other) for other in score.top],
        }
        for score in scores
    ]


def _entry(token: bytes, logprob: float) -> dict[str, Any]:
    text = token_text(token)
    return {"token": text, "logprob": clamped(logprob), "bytes": list(token)}
