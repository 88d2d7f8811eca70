"""Frames of the control socket: a length and a msgpack map.

    u32 big-endian length of the map  ·  map        at most 16 MiB

Used by both sides, with and without a loop. Text that came from the file system may
hold bytes that are no UTF-8; it travels as it is.

Invariant: bytes from outside become maps or FrameError, and no more of them are kept
than one frame.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgpack

MAX_FRAME_BYTES = 16 << 20
_LENGTH = struct.Struct(">I")


class FrameError(Exception):
    """Not a frame of ours, or larger than one may be."""


def pack_frame(content: Mapping[str, Any]) -> bytes:
    """Raises FrameError when it is too large, TypeError or ValueError when not data."""
    packed: bytes = msgpack.packb(dict(content), unicode_errors="surrogateescape")
    if len(packed) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(packed)} bytes, {MAX_FRAME_BYTES} allowed")
    return _LENGTH.pack(len(packed)) + packed


class FrameReader:
    """Cuts a stream into frames; one per connection and direction."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The frames that are whole now. Raises FrameError; then the stream is lost."""
        self._bytes += data
        frames = []
        start = 0
        while (end := self._end(start)) <= len(self._bytes):
            frames.append(_unpack(self._bytes[start + _LENGTH.size : end]))
            start = end
        del self._bytes[:start]
        return frames

    @property
    def pending(self) -> bool:
        """A frame has begun and not ended."""
        return bool(self._bytes)

    def _end(self, start: int) -> int:
        """Where the frame that begins at `start` ends, as far as is known."""
        body = start + _LENGTH.size
        if body > len(self._bytes):
            return body
        (size,) = _LENGTH.unpack_from(self._bytes, start)
        if size > MAX_FRAME_BYTES:
            raise FrameError(f"a frame of {size} bytes, {MAX_FRAME_BYTES} allowed")
        return body + int(size)


def _unpack(packed: bytearray) -> dict[str, Any]:
    try:
        content = msgpack.unpackb(
            packed, unicode_errors="surrogateescape", ext_hook=_refuse_ext
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise FrameError("not msgpack") from error
    if not isinstance(content, dict):
        raise FrameError(f"a {type(content).__name__} instead of a map")
    return content


def _refuse_ext(code: int, _data: bytes) -> Any:
    raise ValueError(f"ext type {code}")
