"""A node's event stream, cut only between frames, and what it says in passing.

Gateway worker; pure. Bytes go through as they came, up to the last blank line; what
stands behind it is held until its frame is whole, so that nothing is ever inserted into
a frame and a stream that dies ends between two. Read in passing: the comment with the
usage (asked for by `x-cortex-usage`, taken out), the first token, the terminal event.

    feed(b'data: {…}\n\ndata: {"ch')  ─▶  b'data: {…}\n\n'      held: b'data: {"ch'

Invariant: whatever the pieces that a stream arrives in, what leaves is the same stream
without the usage comments, frame for frame in order.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

MAX_FRAME_BYTES = 8 << 20

_USAGE = b": usage "
_USAGE_FRAME = re.compile(rb"(?:\A|(?<=\n\n)): usage ([^\n]*)\n\n")
_TERMINAL = re.compile(rb"(?:\A|\n)data: ?(?:(\[DONE\])|\{ ?\"error\")")


class FrameTooLarge(Exception):
    """A frame without an end."""


class Usage(msgspec.Struct):
    """Tokens, as the node counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    finish: str = ""


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    """Of a chat, or of a text completion."""

    delta: _Delta = msgspec.field(default_factory=_Delta)
    text: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


_decode_usage = msgspec.json.Decoder(Usage).decode
_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class Frames:
    """One stream. `terminal` is its end as the node told it, "" while it goes on."""

    def __init__(self) -> None:
        self.terminal: Literal["", "done", "error"] = ""
        self.usage: Usage | None = None
        self.has_token = False
        self._held = bytearray()

    def feed(self, data: bytes) -> bytes:
        """The frames that are whole now. Raises FrameTooLarge."""
        held = self._held
        seen = max(0, len(held) - 2)  # a blank line may begin in what was held
        held += data
        end = _end_of_frames(held, seen)
        if not end:
            if len(held) > MAX_FRAME_BYTES:
                raise FrameTooLarge(f"a frame of over {MAX_FRAME_BYTES} bytes")
            return b""
        whole = bytes(held[:end])
        del held[:end]
        return self._inspect(whole)

    def rest(self) -> bytes:
        """What came behind the last blank line."""
        rest = bytes(self._held)
        self._held.clear()
        return rest

    def _inspect(self, whole: bytes) -> bytes:
        if _USAGE in whole:
            whole = _USAGE_FRAME.sub(self._take_usage, whole)
        if not self.has_token:
            self.has_token = _has_token(whole)
        if b"[DONE]" in whole or b'"error"' in whole:
            self._look_for_end(whole)
        return whole

    def _take_usage(self, comment: re.Match[bytes]) -> bytes:
        try:
            self.usage = _decode_usage(comment[1])
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass  # a newer node says it otherwise; the stream itself is fine
        return b""

    def _look_for_end(self, whole: bytes) -> None:
        ends = list(_TERMINAL.finditer(whole))
        if ends:
            self.terminal = "done" if ends[-1][1] else "error"


def _end_of_frames(held: bytearray, start: int) -> int:
    """Just behind the last blank line; 0 = there is none."""
    plain, windows = held.rfind(b"\n\n", start), held.rfind(b"\n\r\n", start)
    return max(plain + 2 if plain >= 0 else 0, windows + 3 if windows >= 0 else 0)


def _has_token(whole: bytes) -> bool:
    """Whether some frame carries output; asked until one does."""
    lines = [line[5:] for line in whole.split(b"\n") if line.startswith(b"data:")]
    return any(_carries_output(line) for line in lines)


def _carries_output(text: bytes) -> bool:
    try:
        chunk = _decode_chunk(text.strip())
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return any(_has_output(choice) for choice in chunk.choices)


def _has_output(choice: _Choice) -> bool:
    delta = choice.delta
    said = choice.text or delta.content or delta.reasoning_content
    return bool(said or delta.tool_calls)
