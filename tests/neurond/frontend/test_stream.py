"""Frames to a client that reads slowly: the worker's side, without HTTP."""

from __future__ import annotations

import io

from ipc.journal import Journal
from ipc.messages import Accepted, Finished, TokenRow, Tokens
from neurond.frontend.stream import AnswerStream, StreamOptions
from neurond.serving.choice import Order, Shown
from neurond.serving.generation import Generation, Usage
from neurond.serving.requests import RequestTable
from tests.neurond.serving.lines import Line, submit
from tests.neurond.slotkit import running


class _Bytes:
    def piece(self, token: int, *, first: bool) -> bytes | None:
        return bytes((token,))

    def spelt(self, token: int, *, first: bool) -> bytes:
        return bytes((token,))


class _Plain:
    def begin(self, index: int) -> bytes:
        return b""

    def shown(self, index: int, shown: Shown) -> bytes:
        return shown.text.encode()

    def finish(self, index: int, reason: str) -> bytes:
        return f" ({reason}) ".encode()

    def usage(self, usage: Usage) -> bytes:
        return b""


@running
async def test_what_comes_while_a_frame_is_sent_is_sent_too() -> None:
    """The end as well: the client isn't told that it is over without it."""
    table, line = RequestTable(first_id=1, max_entries=4), Line()
    generation = Generation(table)
    generation.start(Order(submit(), 1, (), _Bytes(), True), "d", line)
    options = StreamOptions(False, False, "r", lambda: None, lambda: False)
    journal = Journal("neurond", stream=io.StringIO())
    frames = AnswerStream(generation, _Plain(), options, journal).frames()
    table.on_message("d", line, Accepted(1, 0, 0))
    table.on_message("d", line, Tokens((TokenRow(1, 0, tuple(b"ab")),)))
    read = [await anext(frames), await anext(frames)]
    table.on_message("d", line, Tokens((TokenRow(1, 2, tuple(b"cd")),)))
    table.on_message("d", line, Finished(1, "length", 3, 4, 0))
    read += [frame async for frame in frames]
    assert b"".join(read) == b"abcd (length) data: [DONE]\n\n"
