"""A node's answer that comes as one body: checked before a client sees it. Pure.

Invariant: what leaves is JSON of our contract: an error has message, type, code and our
request id, or it is replaced by one that has (S41).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from cortexd.frames import Usage
from cortexd.nodes.http import Lost


@dataclass(frozen=True, slots=True)
class Whole:
    """`retry_after` as the node said it, "" when it didn't."""

    status: int
    body: bytes
    retry_after: str = ""
    usage: Usage | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _UsageBody(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Completion(msgspec.Struct):
    usage: _UsageBody | None = None


class _ErrorBody(msgspec.Struct):
    error: dict[str, msgspec.Raw]


_decode_completion = msgspec.json.Decoder(_Completion).decode
_decode_error = msgspec.json.Decoder(_ErrorBody).decode
_ABOUT_US = (401, 403)
"""The node refuses the gateway's token, not the client's key."""
_NEEDED = ("message", "type", "code")


def checked(status: int, body: bytes, retry_after: str, request_id: str) -> Whole:
    """Raises Lost when it is no answer of a node."""
    if status == 200:
        return Whole(status, body, usage=usage_of(body))
    if status < 400 or status in _ABOUT_US:
        raise Lost(f"the node answered with status {status}")
    return Whole(status, _with_our_id(status, body, request_id), retry_after)


def usage_of(body: bytes) -> Usage | None:
    """The figures of a whole completion. Raises Lost when it isn't JSON."""
    try:
        usage = _decode_completion(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Lost("the node's answer is not a completion") from error
    if usage is None:
        return None
    cached = usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens
    return Usage(usage.prompt_tokens, usage.completion_tokens, cached or 0)


def _with_our_id(status: int, body: bytes, request_id: str) -> bytes:
    try:
        error = _decode_error(body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as cause:
        raise Lost(f"status {status} without an error of ours") from cause
    if not all(key in error for key in _NEEDED):
        raise Lost(f"status {status} without an error of ours")
    error["request_id"] = msgspec.Raw(msgspec.json.encode(request_id))
    return msgspec.json.encode({"error": error})
