"""Envelopes of the chat completions dialect, as bytes.

Pure; front end and gateway. A stream's frames share all but the text, so the parts
around it are made once per stream.

    data: {…"delta":{"role":"assistant","content":""}…}    first, per choice
    data: {…"delta":{"content":"…"}…}                       as it comes
    data: {…"delta":{"tool_calls":[…]}…}                    instead, of a forced call
    data: {…"delta":{},…"finish_reason":"stop"}             once per choice
    data: {…"choices":[],"usage":{…}}                       if asked for
    data: [DONE]                  or   data: {"error":{…}}  and no [DONE]
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ipc.errors import ServiceError
from neurond.serving.choice import Shown
from neurond.serving.edge import error_body
from neurond.serving.generation import Usage
from neurond.serving.logprobs import Score, chat_content
from neurond.serving.toolcalls import CallDelta, ForcedCall, call_id

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all frames and answers of one request have in common."""

    id: str
    created_s: int
    model: str


def new_envelope(model: str, now_s: float) -> Envelope:
    return Envelope(f"chatcmpl-{secrets.token_hex(14)}", int(now_s), model)


class ChunkFrames:
    """The frames of one stream whose choices are text."""

    def __init__(self, envelope: Envelope, *, include_usage: bool) -> None:
        head = _head(envelope, "chat.completion.chunk")
        self._head = b"data: " + _encode(head)[:-1]
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    def begin(self, index: int) -> bytes:
        return self.delta(index, b'{"role":"assistant","content":""}')

    def shown(self, index: int, shown: Shown) -> bytes:
        delta = b'{"content":' + _encode(shown.text) + b"}"
        return self.delta(index, delta, shown.scores)

    def finish(self, index: int, reason: str) -> bytes:
        return self._frame(index, b"{}", b"null", _encode(reason))

    def usage(self, usage: Usage) -> bytes:
        figures = _encode(usage_body(usage))
        return self._head + b',"choices":[],"usage":' + figures + b"}\n\n"

    def delta(self, index: int, delta: bytes, scores: Sequence[Score] = ()) -> bytes:
        """`delta` as JSON, with the scores of the tokens that it shows."""
        logprobs = _encode(logprobs_body(scores)) if scores else b"null"
        return self._frame(index, delta, logprobs, b"null")

    def _frame(self, index: int, delta: bytes, logprobs: bytes, reason: bytes) -> bytes:
        return b'%b,"choices":[{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}]%b' % (  # noqa: E501
            self._head, index, delta, logprobs, reason, self._tail
        )  # fmt: skip


class CallFrames:
    """The frames of one stream whose choices are a forced call each."""

    def __init__(self, frames: ChunkFrames, answer_id: str) -> None:
        self._frames = frames
        self._answer_id = answer_id
        self._calls: defaultdict[int, ForcedCall] = defaultdict(ForcedCall)

    def begin(self, index: int) -> bytes:
        return self._frames.delta(index, b'{"role":"assistant","content":null}')

    def shown(self, index: int, shown: Shown) -> bytes:
        delta = self._calls[index].push(shown.text)
        if delta is not None:
            call = _encode({"tool_calls": [self._call(index, delta)]})
            return self._frames.delta(index, call, shown.scores)
        if shown.scores:
            return self._frames.delta(index, b"{}", shown.scores)
        return b""

    def finish(self, index: int, reason: str) -> bytes:
        call = self._calls[index]
        rest = call.rest()
        text = self._frames.shown(index, Shown(rest, [])) if rest else b""
        return text + self._frames.finish(index, _call_finish(call, reason))

    def usage(self, usage: Usage) -> bytes:
        return self._frames.usage(usage)

    def _call(self, index: int, delta: CallDelta) -> dict[str, Any]:
        if delta.name is None:
            return {"index": 0, "function": {"arguments": delta.arguments}}
        identity = call_id(self._answer_id, index)
        return {"index": 0, **_tool_call(identity, delta.name, delta.arguments)}


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice as a whole; `scores` None: they were not asked for."""

    message: dict[str, Any]
    scores: Sequence[Score] | None
    finish: str


def text_answer(shown: Shown, finish: str, *, scored: bool) -> Answer:
    message = {"role": "assistant", "content": shown.text, "refusal": None}
    return Answer(message, shown.scores if scored else None, finish)


def call_answer(
    answer_id: str, index: int, shown: Shown, finish: str, *, scored: bool
) -> Answer:
    """A forced call; text that turns out to be none is content."""
    call = ForcedCall()
    delta = call.push(shown.text)
    message: dict[str, Any] = {"role": "assistant", "content": call.rest() or None}
    message["refusal"] = None
    if delta is not None and delta.name is not None:
        identity = call_id(answer_id, index)
        message["tool_calls"] = [_tool_call(identity, delta.name, delta.arguments)]
    scores = shown.scores if scored else None
    return Answer(message, scores, _call_finish(call, finish))


def completion(envelope: Envelope, answers: Sequence[Answer], usage: Usage) -> bytes:
    """The whole answer."""
    choices = [
        {
            "index": index,
            "message": answer.message,
            "logprobs": None if answer.scores is None else logprobs_body(answer.scores),
            "finish_reason": answer.finish,
        }
        for index, answer in enumerate(answers)
    ]
    head = _head(envelope, "chat.completion")
    return _encode({**head, "choices": choices, "usage": usage_body(usage)})


def logprobs_body(scores: Sequence[Score]) -> dict[str, Any]:
    return {"content": chat_content(scores), "refusal": None}


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


def usage_comment(usage: Usage, finish: str) -> bytes:
    """For a gateway that counts without parsing the stream."""
    figures = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "cached_tokens": usage.cached,
        "finish": finish,
    }
    return b": usage " + _encode(figures) + b"\n\n"


def error_event(error: ServiceError, request_id: str) -> bytes:
    return b"data: " + _encode(error_body(error, request_id)) + b"\n\n"


def _call_finish(call: ForcedCall, reason: str) -> str:
    """A call that is whole is one, whatever ended the text behind it."""
    return "tool_calls" if call.is_complete else reason


def _tool_call(identity: str, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": identity, "type": "function", "function": function}


def _head(envelope: Envelope, kind: str) -> dict[str, Any]:
    return {
        "id": envelope.id,
        "object": kind,
        "created": envelope.created_s,
        "model": envelope.model,
    }
