"""Envelopes of the text completions dialect, as bytes.

Pure; front end and gateway. Each choice is a text, which may begin with its prompt:

    : keep-alive                                            at once
    data: {…"text":"the prompt"…}                           with echo, per choice
    data: {…"text":"…","logprobs":{…}…}                     as it comes
    data: {…"text":"",…"finish_reason":"stop"}              once per choice
    data: {…"choices":[],"usage":{…}}                       if asked for
    data: [DONE]                  or   data: {"error":{…}}  and no [DONE]

Choice `index` counts through the prompts, `n` for each.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from neurond.serving import textlogprobs
from neurond.serving.choice import Choice, Shown
from neurond.serving.detokenize import Pieces
from neurond.serving.generation import Usage
from neurond.serving.openai import KEEP_ALIVE, Envelope, usage_body
from neurond.serving.textlogprobs import TextLogprobs

_NOTHING = Shown("", [])
_encode = msgspec.json.encode


class Continued:
    """Pieces of a text that goes on from a prompt: no token of it is the first."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces

    def piece(self, token: int, *, first: bool) -> bytes | None:
        return self._pieces.piece(token, first=False)

    def spelt(self, token: int, *, first: bool) -> bytes:
        return self._pieces.spelt(token, first=False)


@dataclass(frozen=True, slots=True)
class Style:
    """How the choices of a request are told; numbers are -1 for none."""

    echo: bool
    logprobs: int
    prompt_logprobs: int


@dataclass(frozen=True, slots=True)
class PromptText:
    """`text` None: it came as ids."""

    text: str | None
    ids: tuple[int, ...]
    pieces: Pieces

    def shown(self) -> str:
        if self.text is not None:
            return self.text
        tokens = textlogprobs.prompt_tokens(self.ids, self.pieces, ())
        return b"".join([token for token, _, _ in tokens]).decode(errors="replace")


class Part(NamedTuple):
    text: str
    logprobs: dict[str, Any] | None


class Teller:
    """One choice, piece by piece: its prompt first where it is wanted.

    The device has scored the whole prompt by the time it emits or ends.
    """

    def __init__(self, style: Style, prompt: PromptText, choice: Choice) -> None:
        self._style = style
        self._prompt = prompt
        self._choice = choice
        self._logprobs = TextLogprobs(style.logprobs) if style.logprobs >= 0 else None
        self._owes_prompt = style.echo

    def begin(self) -> list[Part]:
        """What is there before the device has done anything."""
        return [] if self._logprobs else self.tell(_NOTHING)

    def tell(self, shown: Shown) -> list[Part]:
        parts: list[Part] = []
        if self._owes_prompt:
            self._owes_prompt = False
            parts.append(self._echo())
        if shown:
            told = self._logprobs.shown(shown) if self._logprobs else None
            parts.append(Part(shown.text, told))
        return parts

    def whole(self, shown: Shown, finish: str, index: int) -> dict[str, Any]:
        """The choice of an answer that comes at once."""
        parts = self.tell(shown)
        bodies = [part.logprobs for part in parts if part.logprobs is not None]
        if self._logprobs and not bodies:
            bodies = [self._logprobs.shown(_NOTHING)]
        choice = {
            "index": index,
            "text": "".join([part.text for part in parts]),
            "logprobs": textlogprobs.merged(bodies) if bodies else None,
            "finish_reason": finish,
        }
        if self._style.prompt_logprobs >= 0:
            prompt, scores = self._prompt, self._choice.prompt_scores
            choice["prompt_logprobs"] = textlogprobs.prompt_logprobs(
                prompt.ids, prompt.pieces, scores
            )
        return choice

    def _echo(self) -> Part:
        prompt, text = self._prompt, self._prompt.shown()
        if self._logprobs is None:
            return Part(text, None)
        scores = self._choice.prompt_scores
        tokens = textlogprobs.prompt_tokens(prompt.ids, prompt.pieces, scores)
        return Part(text, self._logprobs.prompt(text, tokens))


class TextFrames:
    """The frames of one stream."""

    def __init__(
        self, envelope: Envelope, tellers: Sequence[Teller], *, include_usage: bool
    ) -> None:
        self._tellers = tellers
        self._head = b"data: " + _encode(_head(envelope))[:-1]
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    def begin(self, index: int) -> bytes:
        parts = self._parts(index, self._tellers[index].begin())
        return parts if index else KEEP_ALIVE + parts

    def shown(self, index: int, shown: Shown) -> bytes:
        return self._parts(index, self._tellers[index].tell(shown))

    def finish(self, index: int, reason: str) -> bytes:
        owed = self._parts(index, self._tellers[index].tell(_NOTHING))
        return owed + self._frame(index, Part("", None), _encode(reason))

    def usage(self, usage: Usage) -> bytes:
        figures = _encode(usage_body(usage))
        return self._head + b',"choices":[],"usage":' + figures + b"}\n\n"

    def _parts(self, index: int, parts: Sequence[Part]) -> bytes:
        return b"".join([self._frame(index, part, b"null") for part in parts])

    def _frame(self, index: int, part: Part, reason: bytes) -> bytes:
        return b'%b,"choices":[{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}]%b' % (  # noqa: E501
            self._head, index, _encode(part.text), _encode(part.logprobs), reason,
            self._tail,
        )  # fmt: skip


def new_envelope(model: str, now_s: float) -> Envelope:
    return Envelope(f"cmpl-{secrets.token_hex(14)}", int(now_s), model)


def completion(
    envelope: Envelope,
    tellers: Sequence[Teller],
    ended: Sequence[tuple[Shown, str]],
    usage: Usage,
) -> bytes:
    """The whole answer; `ended` is what each choice shows, and its finish reason."""
    choices = [
        teller.whole(shown, finish, index)
        for index, (teller, (shown, finish)) in enumerate(
            zip(tellers, ended, strict=True)
        )
    ]
    body = {**_head(envelope), "choices": choices, "usage": usage_body(usage)}
    return _encode(body)


def _head(envelope: Envelope) -> dict[str, Any]:
    return {
        "id": envelope.id,
        "object": "text_completion",
        "created": envelope.created_s,
        "model": envelope.model,
    }
