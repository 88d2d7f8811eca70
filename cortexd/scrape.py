"""Serves a Prometheus registry on a listening socket, one scrape after the other.

Metrics process. One answer per connection; who is slow to ask is dropped.

Invariant: a connection ends within its deadline, whatever the client does.
"""

from __future__ import annotations

import asyncio
import signal
import socket

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

_DEADLINE_S = 5.0
_MAX_HEAD_BYTES = 16 << 10
_PATHS = ("/metrics", "/")


async def serve(listener: socket.socket, registry: CollectorRegistry) -> None:
    """Until SIGTERM."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    scraper = Scraper(registry)
    server = await asyncio.start_server(
        scraper.answer, sock=listener, limit=_MAX_HEAD_BYTES
    )
    async with server:
        await stopped.wait()


class Scraper:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    async def answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            async with asyncio.timeout(_DEADLINE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer_to(head.decode("latin-1")))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()

    def _answer_to(self, head: str) -> bytes:
        first, *lines = head.split("\r\n")
        method, _, rest = first.partition(" ")
        if method not in ("GET", "HEAD"):
            return _http(405, "text/plain", b"only GET\n")
        if rest.split(" ")[0].split("?")[0] not in _PATHS:
            return _http(404, "text/plain", b"see /metrics\n")
        encode, kind = choose_encoder(_accept(lines))
        body = encode(self._registry)
        return _http(200, kind, body if method == "GET" else b"")


def _accept(lines: list[str]) -> str:
    pairs = [line.partition(":") for line in lines]
    return next((v.strip() for n, _, v in pairs if n.lower() == "accept"), "")


def _http(status: int, kind: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
