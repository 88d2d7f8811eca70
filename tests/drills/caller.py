"""One request over a connection of its own, whole or left in the middle.

asyncio and sockets, so that hundreds are open at once and cost little.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.drills.traffic import Ask

PATIENCE_S = 90.0


@dataclass(frozen=True, slots=True)
class Leave:
    """When a client goes: after so many seconds or events; None = it stays."""

    after_s: float | None = None
    after_events: int | None = None

    @property
    def ever(self) -> bool:
        return self.after_s is not None or self.after_events is not None


@dataclass(slots=True)
class Answer:
    """`events` are a stream's documents and "[DONE]"; `body` is what was no stream."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    events: list[Any] = field(default_factory=list)
    has_left: bool = False
    on_event: Callable[[], None] = field(default=lambda: None, repr=False)

    @property
    def document(self) -> Any:
        return json.loads(self.body)


def _nothing() -> None:
    pass


async def call(
    host: str,
    port: int,
    ask: Ask,
    leave: Leave,
    on_event: Callable[[], None] = _nothing,
) -> Answer:
    """Raises TimeoutError after PATIENCE_S; OSError, EOFError, ValueError for what is
    no HTTP answer. `on_event` is told of each event of a stream."""
    answer = Answer(on_event=on_event)
    limit_s = PATIENCE_S if leave.after_s is None else leave.after_s
    try:
        async with asyncio.timeout(limit_s):
            await _exchange(host, port, ask, answer, leave)
    except TimeoutError:
        if leave.after_s is None:
            raise
        answer.has_left = True
    return answer


async def _exchange(
    host: str, port: int, ask: Ask, answer: Answer, leave: Leave
) -> None:
    # who asks is told by where the connection comes from
    mine = (ask.caller, 0)
    reader, writer = await asyncio.open_connection(host, port, local_addr=mine)
    try:
        writer.write(_request(host, port, ask))
        await _head(reader, answer)
        if "text/event-stream" in answer.headers.get("content-type", ""):
            await _follow(reader, answer, leave)
        else:
            async for data in _body(reader, answer.headers):
                answer.body += data
    finally:
        writer.close()


def _request(host: str, port: int, ask: Ask) -> bytes:
    raw = isinstance(ask.body, bytes)
    payload = ask.body if raw else json.dumps(ask.body).encode()
    head = (
        f"POST {ask.path} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + bytes(payload)


async def _head(reader: asyncio.StreamReader, answer: Answer) -> None:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    answer.status = int(lines[0].split()[1])
    for line in lines[1:-2]:
        name, _, value = line.partition(":")
        answer.headers[name.lower()] = value.strip()


async def _follow(reader: asyncio.StreamReader, answer: Answer, leave: Leave) -> None:
    rest = b""
    async for data in _body(reader, answer.headers):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                held = line[6:].strip()
                answer.events.append(
                    "[DONE]" if held == b"[DONE]" else json.loads(held)
                )
                answer.on_event()
        if leave.after_events is not None and len(answer.events) > leave.after_events:
            answer.has_left = True
            return


async def _body(
    reader: asyncio.StreamReader, headers: dict[str, str]
) -> AsyncIterator[bytes]:
    """Raises IncompleteReadError where it was cut off."""
    if headers.get("transfer-encoding") != "chunked":
        yield await reader.readexactly(int(headers["content-length"]))
        return
    while size := int((await reader.readline()).split(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readline()
