"""A streaming chat client that keeps the time of every piece.

Sockets and asyncio only, so that the client costs little beside a server on the same
machine. Understands chunked server-sent events of any OpenAI-like server.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

DEADLINE_S = 300.0
Messages = list[dict[str, str]]


@dataclass(slots=True)
class Timeline:
    """One answer: when it was asked for, when each piece of text came."""

    asked_s: float
    piece_s: list[float] = field(default_factory=list)
    text: str = ""
    num_tokens: int = 0
    num_cached: int = 0

    @property
    def first_s(self) -> float:
        return self.piece_s[0] - self.asked_s

    @property
    def gaps_s(self) -> list[float]:
        pairs = zip(self.piece_s, self.piece_s[1:], strict=False)
        return [later - earlier for earlier, later in pairs]


class ServerRefused(Exception):
    """An answer other than 200."""


async def chat(
    url: str, model: str, messages: Messages, *, max_tokens: int, **more: Any
) -> Timeline:
    """Greedy unless told otherwise. Raises ServerRefused, OSError, TimeoutError."""
    body = {
        "model": model,
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }
    async with asyncio.timeout(DEADLINE_S):
        return await _stream(url, body)


async def _stream(url: str, body: dict[str, Any]) -> Timeline:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        payload = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\n"
            "content-type: application/json\r\nconnection: close\r\n"
            f"content-length: {len(payload)}\r\n\r\n"
        )
        timeline = Timeline(time.perf_counter())
        writer.write(head.encode() + payload)
        status = await _status(reader)
        if status != 200:
            raise ServerRefused(f"{status}: {(await reader.read())[:500]!r}")
        async for line in _lines(reader):
            _take(timeline, line)
        return timeline
    finally:
        writer.close()


async def _status(reader: asyncio.StreamReader) -> int:
    """Of the answer; reads up to the end of its header."""
    first = await reader.readline()
    while (await reader.readline()).strip():
        pass
    return int(first.split()[1])


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The body's lines, whatever its chunks are."""
    rest = b""
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        rest += await reader.readexactly(size)
        await reader.readline()
        *lines, rest = rest.split(b"\n")
        for line in lines:
            yield line.strip()


def _take(timeline: Timeline, line: bytes) -> None:
    if not line.startswith(b"data: {"):
        return
    event = json.loads(line[6:])
    if "error" in event:
        raise ServerRefused(str(event["error"]))
    for choice in event.get("choices") or ():
        text = (choice.get("delta") or {}).get("content")
        if text:
            timeline.piece_s.append(time.perf_counter())
            timeline.text += text
    if usage := event.get("usage"):
        timeline.num_tokens = usage["completion_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        timeline.num_cached = details.get("cached_tokens") or 0
