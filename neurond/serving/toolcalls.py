"""A forced call's JSON, as it comes, into the deltas of a tool call.

Pure; one `ForcedCall` per choice. The arguments leave exactly as the model wrote them;
they end where their object does:

    {"name": "f", "arguments": {"a": "}"}}
     └ head, held until it is whole ┘└ leave as they come ┘└ nothing of it leaves

Invariant: what leaves depends on the text alone, not on how it was cut into pushes.
"""

from __future__ import annotations

import hashlib
import re
from enum import Enum
from typing import NamedTuple

import msgspec

_STRING = r'"(?:[^"\\]|\\.)*"'
_HEAD = re.compile(
    rf'\s*\{{\s*"name"\s*:\s*({_STRING})\s*,\s*"arguments"\s*:\s*(?=\{{)'
)
MAX_HEAD_CHARS = 4096
"""More than any name and what stands around it; longer is something else."""


class CallDelta(NamedTuple):
    """`name` is there once, with the first delta; `arguments` is a piece of JSON."""

    name: str | None
    arguments: str


class Where(Enum):
    HEAD = "head"
    ARGUMENTS = "arguments"
    BEHIND = "behind"
    NO_CALL = "no call"


class ForcedCall:
    __slots__ = ("_depth", "_escaped", "_held", "_in_string", "_where")

    def __init__(self) -> None:
        self._held = ""
        self._where = Where.HEAD
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def is_complete(self) -> bool:
        return self._where is Where.BEHIND

    def push(self, text: str) -> CallDelta | None:
        """What is new of the call, None when nothing is."""
        name = None
        if self._where in (Where.HEAD, Where.NO_CALL):
            self._held += text
        if self._where is Where.HEAD:
            name, text = self._past_head()
        arguments = self._arguments(text) if self._where is Where.ARGUMENTS else ""
        if name is None and not arguments:
            return None
        return CallDelta(name, arguments)

    def rest(self) -> str:
        """At the end: text that has turned out to be no call."""
        held, self._held = self._held, ""
        return held

    def _past_head(self) -> tuple[str | None, str]:
        """The function's name and what stands behind the head, once it is whole."""
        head = _HEAD.match(self._held, 0, MAX_HEAD_CHARS)
        if head is None:
            if len(self._held) >= MAX_HEAD_CHARS:
                self._where = Where.NO_CALL
            return None, ""
        rest, self._held = self._held[head.end() :], ""
        self._where = Where.ARGUMENTS
        return str(msgspec.json.decode(head[1])), rest

    def _arguments(self, text: str) -> str:
        """As much of `text` as belongs to the arguments' object."""
        for at, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = char == "\\"
                self._in_string = char != '"'
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._where = Where.BEHIND
                    return text[: at + 1]
        return text


def call_id(answer_id: str, index: int) -> str:
    """The same for a stream that is taken up again."""
    digest = hashlib.sha256(f"{answer_id}/{index}".encode()).hexdigest()
    return f"call_{digest[:24]}"
