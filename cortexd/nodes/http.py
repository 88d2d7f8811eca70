"""One connection to a node: HTTP/1.1 over asyncio and httptools, bytes handed through.

Gateway worker and fleet. A connection carries one exchange at a time. Body bytes wait
in a bounded buffer; beyond it the socket is not read, so that a slow client slows the
node. There is no limit on the whole, only on silence (S46).

    send ─▶ head ─▶ read … read = b"" ─▶ reusable
              └───────┴──── Silent (may be waited for again), Lost (for good)

Invariant: an answer that was cut off, or isn't HTTP, never looks like a whole one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

import httptools

_BUFFER_BYTES = 256 << 10
_MAX_HEAD_BYTES = 64 << 10
_INFORMATIONAL = range(100, 200)


class NodeError(Exception):
    """The node gave no whole answer. The text is for the journal, not for clients."""


class Unreachable(NodeError):
    """No connection; nothing was sent."""


class Lost(NodeError):
    """The connection ended, or what came is no HTTP."""


class Silent(NodeError):
    """Nothing came for too long; the connection still stands."""


class Connection(asyncio.Protocol):
    """`status` and `headers` (names lower-case) hold once `head` has returned."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._error: NodeError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_busy = False
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._is_paused = False
        self._head_bytes = 0
        self._head_done = False
        self._complete = False
        self._keeps_alive = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}

    # ---- one exchange ---------------------------------------------------------------

    def send(self, request: bytes) -> None:
        """Begin an exchange."""
        self._begin()
        self._is_busy = True
        if self._transport is not None:
            self._transport.write(request)

    async def head(self, *, idle_s: float) -> None:
        """Return once status and headers are there. Raises Lost, Silent."""
        while not self._head_done:
            if self._error is not None:
                raise self._error
            await self._wait(idle_s)

    async def read(self, *, idle_s: float) -> bytes:
        """All bytes of the body that have come; b"" at its end. Raises Lost, Silent."""
        while not self._chunks:
            if self._complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait(idle_s)
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._buffered_bytes = 0
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    @property
    def has_answered(self) -> bool:
        """Whether any byte of the answer has come."""
        return self._head_bytes > 0

    def release(self) -> bool:
        """End the exchange. True: whole, and fit for another; else it is closed."""
        self._is_busy = False
        if self._complete and self._keeps_alive and self.is_open and not self._chunks:
            return True
        self.abort()
        return False

    # ---- the connection -------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return (
            self._error is None
            and self._transport is not None
            and not self._transport.is_closing()
        )

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            "asyncio.Transport", transport
        )  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail("the node closed the connection", exc)

    def data_received(self, data: bytes) -> None:
        if not self._is_busy or self._complete:
            self._refuse("bytes that nobody asked for")
            return
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._refuse("the answer is not HTTP", error)
            return
        if not self._head_done and self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse("the answer's head is too large")

    # ---- called by the parser -------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:  # a second answer, in the bytes that ended the first
            raise Lost("bytes that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status in _INFORMATIONAL:
            self.headers.clear()
            return
        self._keeps_alive = self._parser.should_keep_alive()
        self._head_done = True
        self._wake()

    def on_body(self, data: bytes) -> None:
        self._chunks.append(data)
        self._buffered_bytes += len(data)
        if self._buffered_bytes > _BUFFER_BYTES and not self._is_paused:
            self._is_paused = True
            if self._transport is not None:
                self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self._head_done:
            self._complete = True
            self._wake()

    # ---- waiting --------------------------------------------------------------------

    async def _wait(self, idle_s: float) -> None:
        waiter = self._waiter = self._loop.create_future()
        timer = self._loop.call_later(idle_s, self._expire, idle_s)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _expire(self, idle_s: float) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_exception(Silent(f"nothing came for {idle_s:g} s"))

    def _refuse(self, reason: str, cause: Exception | None = None) -> None:
        self._fail(reason, cause)
        self.abort()

    def _fail(self, reason: str, cause: Exception | None) -> None:
        if self._error is None:
            self._error = Lost(reason)
            self._error.__cause__ = cause
        self._wake()
