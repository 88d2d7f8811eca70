"""A request's body: read under limits, parsed as JSON, refused with the position.

Front-end and gateway workers. The server below neither caps a body nor reports one
that was cut off, so both are checked here before anything is acted on.

Invariant: what comes out is a whole JSON document of bounded size, depth and count
whose strings are valid Unicode; anything else is a ClientError (T6, T19, T21).
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from ipc.errors import ClientError

Receive = Callable[[], Awaitable[Mapping[str, Any]]]

_JSON_TYPE = re.compile(r"application/(?:[\w.-]+\+)?json", re.IGNORECASE)
_POSITION = re.compile(r"\(byte (\d+)\)")
_NOTHING_YET = {"type": "http.request", "body": b"", "more_body": True}
_COUNTED_FROM_BYTES = 256 << 10
_MAX_STRUCTURE = 500_000
"""Marks of structure in a large body; as many take a tenth of a second to parse."""
_PACE_GRACE_S = 10.0
_LEAST_PACE = 1024
"""Bytes per second that a client has to reach once the grace is over."""


class BodyReader:
    """The `receive` of one exchange, remembering whether the body came whole.

    `has_body`: one was announced.
    """

    def __init__(self, receive: Receive, *, has_body: bool = False) -> None:
        self._receive = receive
        self._has_body = has_body
        self._first: Mapping[str, Any] | None = None

    async def receive(self) -> Mapping[str, Any]:
        """For the framework, which looks at the first event before it routes.

        It would answer nothing where that is the end of the connection. But a client
        that sent nothing of its body may still listen: who reads the body refuses it.
        """
        event = await self._receive()
        if self._first is None:
            self._first = event
            if self._has_body and event["type"] == "http.disconnect":
                return _NOTHING_YET
        return event

    async def read(self, headers: Mapping[str, str], *, limit_bytes: int) -> bytes:
        """The whole body. Raises ClientError."""
        announced = _announced(headers)
        if announced is not None and announced > limit_bytes:
            raise too_large(limit_bytes)
        body = await self._collect(limit_bytes)
        if announced is not None and len(body) != announced:
            raise cut_off(f"{len(body)} of {announced} bytes came")
        return body

    async def _collect(self, limit_bytes: int) -> bytes:
        started_s = time.monotonic()
        event = self._first or await self.receive()
        body = bytearray()  # of a million small pieces, it is still its own size
        while True:
            if event["type"] != "http.request":
                raise cut_off("the connection fell silent")
            body += event.get("body", b"")
            if len(body) > limit_bytes:
                raise too_large(limit_bytes)
            if not event.get("more_body", False):
                return bytes(body)
            waited_s = time.monotonic() - started_s
            if waited_s > _PACE_GRACE_S and len(body) < waited_s * _LEAST_PACE:
                raise cut_off("it came too slowly")
            event = await self._receive()


def require_json(headers: Mapping[str, str]) -> None:
    """Also a guard: a browser can't send this type across origins unasked."""
    kind = headers.get("content-type", "").split(";")[0].strip()
    if not _JSON_TYPE.fullmatch(kind):
        raise _media("the body must be application/json")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise _media("content-encoding is not supported")


def parse(body: bytes) -> Any:
    """The document in `body`. Raises ClientError with line and column."""
    if not body.strip():
        raise _not_json("the body is empty")
    if len(body) > _COUNTED_FROM_BYTES:
        marks = sum([body.count(mark) for mark in (b":", b",", b"[", b"{")])
        if marks > _MAX_STRUCTURE:
            raise _not_json("the body has too many parts")
    try:
        return msgspec.json.decode(body)
    except UnicodeDecodeError as error:
        raise _bad_utf8(body) from error
    except msgspec.DecodeError as error:
        raise _malformed(body, str(error)) from error
    except RecursionError as error:
        raise _not_json("the body is nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise _not_json("the body has a number out of range") from error


def too_large(limit_bytes: int) -> ClientError:
    return ClientError(
        f"the body is larger than {limit_bytes} bytes",
        code="request_too_large",
        fields={"max_bytes": limit_bytes},
    )


def cut_off(detail: str) -> ClientError:
    return _not_json(f"the body was cut off: {detail}")


def _announced(headers: Mapping[str, str]) -> int | None:
    value = headers.get("content-length")
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise ClientError("Content-Length is not a number")
    return int(value)


def _malformed(body: bytes, reason: str) -> ClientError:
    if "out of range" in reason:
        return _not_json("the body has a number out of range")
    found = _POSITION.search(reason)
    at = int(found[1]) if found else len(body)
    at -= "trailing characters" in reason  # there it counts from behind
    words = _POSITION.sub("", reason).removeprefix("JSON is malformed:").strip()
    return _at(body, at, words)


def _bad_utf8(body: bytes) -> ClientError:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return _at(body, error.start, "invalid UTF-8")
    return _not_json("the body has a string that is not valid Unicode")


def _at(body: bytes, at: int, words: str) -> ClientError:
    line = body.count(b"\n", 0, at) + 1
    column = at - (body.rfind(b"\n", 0, at) + 1) + 1
    error = _not_json(f"malformed JSON at line {line}, column {column}: {words}")
    error.fields.update(line=line, column=column)
    return error


def _not_json(message: str) -> ClientError:
    return ClientError(message, code="invalid_json")


def _media(message: str) -> ClientError:
    return ClientError(message, code="unsupported_media_type")
