"""`GET /metrics` on a socket that a parent opened: a registry as text, and no more.

Metrics processes. One loop and no threads: a scrape is computed whole, so two never
mix. One request per connection; a client that is slow to ask or to read is cut off,
and beyond a bound of open connections the next is closed at once.

Invariant: nothing that a client does or a collector raises ends the process.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from asyncio import StreamReader, StreamWriter

import uvloop
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from ipc.journal import Journal

_MAX_HEAD_BYTES = 16 << 10
_MAX_CONNECTIONS = 32
_HEAD_DEADLINE_S = 5.0
_SEND_DEADLINE_S = 10.0
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
}
_TEXT = "text/plain; charset=utf-8"


class Scrape:
    """The server; `journal` hears of collectors that fail."""

    def __init__(
        self,
        registry: CollectorRegistry,
        journal: Journal,
        *,
        head_deadline_s: float = _HEAD_DEADLINE_S,
    ) -> None:
        self._registry = registry
        self._journal = journal
        self._head_deadline_s = head_deadline_s
        self._open = 0

    async def start(self, listener: socket.socket) -> asyncio.Server:
        listener.setblocking(False)
        return await asyncio.start_server(
            self._serve, sock=listener, limit=_MAX_HEAD_BYTES
        )

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= _MAX_CONNECTIONS:
                await self._exchange(reader, writer)
                writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # it left, or took too long
        finally:
            self._open -= 1
            if not writer.is_closing():
                writer.transport.abort()

    async def _exchange(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._head_deadline_s):
                head = await reader.readuntil(b"\r\n\r\n")
            answer = self._answer(head.decode("latin-1"))
        except asyncio.LimitOverrunError:
            answer = _render(400, b"the request's head is too long\n")
        async with asyncio.timeout(_SEND_DEADLINE_S):
            writer.write(answer)
            await writer.drain()

    def _answer(self, head: str) -> bytes:
        line, _, rest = head.partition("\r\n")
        words = line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _render(400, b"this is not HTTP/1\n")
        if words[0] not in ("GET", "HEAD"):
            return _render(405, b"only GET\n", extra="Allow: GET, HEAD\r\n")
        if words[1].partition("?")[0] not in ("/", "/metrics"):
            return _render(404, b"see /metrics\n")
        answer = self._scrape(_field(rest, "accept"))
        return answer if words[0] == "GET" else answer.partition(b"\r\n\r\n")[0] + _END

    def _scrape(self, accept: str) -> bytes:
        encode, content_type = choose_encoder(accept)
        try:
            body = encode(self._registry)
        except (
            Exception
        ) as error:  # the resource border: a collector's bug, or a file's
            self._journal.error(f"scrape failed: {error!r}", event="metrics.failed")
            return _render(500, b"the metrics could not be collected\n")
        return _render(200, body, content_type)


_END = b"\r\n\r\n"


def serve(
    listener: socket.socket, registry: CollectorRegistry, journal: Journal
) -> None:
    """Until SIGTERM; the whole life of a metrics process."""
    uvloop.run(_until_stopped(listener, Scrape(registry, journal)))


async def _until_stopped(listener: socket.socket, scrape: Scrape) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # a terminal's; ours is TERM
    server = await scrape.start(listener)
    await stopped.wait()
    server.close()


def _field(fields: str, name: str) -> str:
    for line in fields.split("\r\n"):
        key, _, value = line.partition(":")
        if key.lower() == name:
            return value.strip()
    return ""


def _render(
    status: int, body: bytes, content_type: str = _TEXT, *, extra: str = ""
) -> bytes:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n{extra}\r\n"
    )
    return head.encode() + body
