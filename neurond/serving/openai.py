"""Envelopes of the chat completions dialect, as bytes.

Pure; front end and gateway. A stream's frames share all but the text, so the parts
around it are made once per stream.

    data: {…"delta":{"role":"assistant","content":""}…}    first, per choice
    data: {…"delta":{"content":"…"}…}                       as it comes
    data: {…"delta":{},…"finish_reason":"stop"}             once per choice
    data: {…"choices":[],"usage":{…}}                       if asked for
    data: [DONE]                  or   data: {"error":{…}}  and no [DONE]
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ipc.errors import ServiceError
from neurond.serving.edge import error_body
from neurond.serving.generation import Usage

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
    """The frames of one stream."""

    def __init__(self, envelope: Envelope, *, include_usage: bool) -> None:
        head = _head(envelope, "chat.completion.chunk")
        self._head = b"data: " + _encode(head)[:-1]
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    def role(self, index: int) -> bytes:
        return self._frame(index, b'{"role":"assistant","content":""}', b"null")

    def text(self, index: int, text: str) -> bytes:
        return self._frame(index, b'{"content":' + _encode(text) + b"}", b"null")

    def finish(self, index: int, reason: str) -> bytes:
        return self._frame(index, b"{}", _encode(reason))

    def usage(self, usage: Usage) -> bytes:
        figures = _encode(usage_body(usage))
        return self._head + b',"choices":[],"usage":' + figures + b"}\n\n"

    def _frame(self, index: int, delta: bytes, reason: bytes) -> bytes:
        return b'%b,"choices":[{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}]%b' % (  # noqa: E501
            self._head, index, delta, reason, self._tail
        )  # fmt: skip


def completion(
    envelope: Envelope, answers: Sequence[tuple[str, str]], usage: Usage
) -> bytes:
    """The whole answer; `answers` are text and finish reason of each choice."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": reason,
        }
        for index, (text, reason) in enumerate(answers)
    ]
    head = _head(envelope, "chat.completion")
    return _encode({**head, "choices": choices, "usage": usage_body(usage)})


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


def _head(envelope: Envelope, kind: str) -> dict[str, Any]:
    return {
        "id": envelope.id,
        "object": kind,
        "created": envelope.created_s,
        "model": envelope.model,
    }
