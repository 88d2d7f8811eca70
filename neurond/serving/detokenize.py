"""Token ids to text, one sequence at a time, as they come.

Pure; one `Detokenizer` per sequence. A token is a piece of bytes, not of characters:
an emoji may be four tokens. So the bytes go through an incremental UTF-8 decoder that
keeps an unfinished character until its last byte is there.

Invariant (S07): whatever was returned is final, and depends on the ids alone, not on
how they were cut into pushes. A replacement character stands only for bytes that no
later token can mend. A character that the end of the answer cuts off is not shown.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol

_utf8 = codecs.getincrementaldecoder("utf-8")


class Pieces(Protocol):
    """`first`: no shown token stands before it."""

    def piece(self, token: int, *, first: bool) -> bytes | None:
        """The bytes of a token, None where it is not to be shown."""

    def spelt(self, token: int, *, first: bool) -> bytes:
        """The bytes of any token, of one that isn't shown as well."""


class Detokenizer:
    __slots__ = ("_decoder", "_first", "_pieces")

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._decoder = _utf8("replace")
        self._first = True

    @property
    def first(self) -> bool:
        """Whether no token has been shown yet."""
        return self._first

    @property
    def is_split(self) -> bool:
        """Whether the last character is not whole yet."""
        return bool(self._decoder.getstate()[0])

    def push(self, ids: Iterable[int]) -> str:
        return "".join([self._one(token) for token in ids])

    def _one(self, token: int) -> str:
        piece = self._pieces.piece(token, first=self._first)
        if piece is None:
            return ""
        self._first = False
        return self._decoder.decode(piece)
