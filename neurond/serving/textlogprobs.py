"""Log probabilities in the text completions dialect.

Pure; front end and gateway. Lists side by side, one element per token:

    tokens          the token's text; bytes that are no text are written as \\xf0
    token_logprobs  its natural logarithm; null for the first token of a prompt
    top_logprobs    the most likely tokens there; null where none were asked for
    text_offset     where the token begins in the choice's text

Invariant: offsets go on from frame to frame; a token that the text doesn't show, a
special one, has no width.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ipc.messages import PromptScores, TopScores
from neurond.serving.choice import Shown
from neurond.serving.detokenize import Pieces
from neurond.serving.logprobs import clamped, token_text

_utf8 = codecs.getincrementaldecoder("utf-8")
_SLACK_CHARS = 16
"""How far a token's text may be from where it is looked for."""

Body = dict[str, Any]
Scored = tuple[bytes, float | None, tuple[tuple[bytes, float], ...]]
"""As a `Score`; None: there is nothing before it that could make it likely."""


class TextLogprobs:
    """Those of one choice. `num_top`: how many of the most likely ones to show."""

    def __init__(self, num_top: int) -> None:
        self._num_top = num_top
        self._decoder = _utf8("replace")
        self._text = ""  # what is shown; before `_begin` it was cut off
        self._begin = 0
        self._at = 0

    def prompt(self, text: str, tokens: Sequence[Scored]) -> Body:
        """Of a prompt that is shown as `text`, before anything else is."""
        body = self._of(text, tokens)
        self._at = len(self._text)
        self._decoder.reset()
        return body

    def shown(self, shown: Shown) -> Body:
        return self._of(shown.text, shown.scores)

    def _of(self, text: str, tokens: Sequence[Scored]) -> Body:
        self._begin += self._at
        self._text, self._at = self._text[self._at :] + text, 0
        return {
            "text_offset": [self._place(token) for token, _, _ in tokens],
            "token_logprobs": [
                None if logprob is None else clamped(logprob)
                for _, logprob, _ in tokens
            ],
            "tokens": [token_text(token) for token, _, _ in tokens],
            "top_logprobs": self._tops(tokens),
        }

    def _place(self, token: bytes) -> int:
        """Where it begins; what follows is looked for behind it."""
        text = self._decoder.decode(token)
        end = self._at + len(text) + _SLACK_CHARS
        found = self._text.find(text, self._at, end) if text else -1
        if found < 0:
            return self._begin + self._at
        self._at = found + len(text)
        return self._begin + found

    def _tops(self, tokens: Iterable[Scored]) -> list[dict[str, float] | None] | None:
        if not self._num_top:
            return None
        return [self._top(*token) for token in tokens]

    def _top(
        self,
        token: bytes,
        logprob: float | None,
        top: tuple[tuple[bytes, float], ...],
    ) -> dict[str, float] | None:
        """The token itself too: it need not be one of the most likely."""
        if logprob is None:
            return None
        found: dict[str, float] = {}
        for other, value in (*top[: self._num_top], (token, logprob)):
            found.setdefault(token_text(other), clamped(value))
        return found


def merged(bodies: Sequence[Body]) -> Body:
    """Those of a text that came in pieces, one after the other."""
    whole: Body = dict(bodies[0])
    for body in bodies[1:]:
        for name, values in body.items():
            whole[name] = None if values is None else whole[name] + values
    return whole


def prompt_tokens(
    ids: Sequence[int], pieces: Pieces, scores: Sequence[PromptScores]
) -> list[Scored]:
    """A prompt's tokens with what a device said of them."""
    known = dict(_by_position(scores))
    tokens: list[Scored] = []
    first = True
    for position, token in enumerate(ids):
        logprob, top = known.get(position, (None, ()))
        spelt = tuple([(pieces.spelt(other, first=first), v) for other, v in top])
        tokens.append((pieces.spelt(token, first=first), logprob, spelt))
        first = first and pieces.piece(token, first=first) is None
    return tokens


def prompt_logprobs(
    ids: Sequence[int], pieces: Pieces, scores: Sequence[PromptScores]
) -> list[dict[str, Body] | None]:
    """The extension of that name: per token of the prompt, by id, null for the first.

    `rank` counts from 1; null where the token is none of the most likely ones.
    """
    known = dict(_by_position(scores))
    return [
        _ranked(token, *known[position], pieces) if position in known else None
        for position, token in enumerate(ids)
    ]


def _ranked(
    token: int, logprob: float, top: TopScores, pieces: Pieces
) -> dict[str, Body]:
    ranked = [(rank, *other) for rank, other in enumerate(top, 1)]
    own = next((r for r, other, _ in ranked if other == token), None)
    rows = [(own, token, logprob), *[row for row in ranked if row[1] != token]]
    return {
        str(other): {
            "logprob": clamped(value),
            "rank": rank,
            "decoded_token": token_text(pieces.spelt(other, first=False)),
        }
        for rank, other, value in rows
    }


def _by_position(
    scores: Sequence[PromptScores],
) -> Iterator[tuple[int, tuple[float, TopScores]]]:
    for message in scores:
        tops = message.top or ((),) * len(message.logprobs)
        for index, logprob in enumerate(message.logprobs):
            yield message.start + index, (logprob, tops[index])
