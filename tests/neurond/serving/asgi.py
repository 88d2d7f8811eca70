"""One exchange with an ASGI app, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

App = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


async def exchange(
    app: App,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    on_chunk: Callable[[bytes], None] = lambda _chunk: None,
) -> Answer:
    """Send one request, collect the answer."""
    answer = Answer()
    events = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        event = next(events, None)
        if event is None:
            await asyncio.get_running_loop().create_future()
        return event

    async def send(event: MutableMapping[str, Any]) -> None:
        if event["type"] == "http.response.start":
            answer.status = event["status"]
            pairs = event["headers"]
            answer.headers = {k.decode(): v.decode() for k, v in pairs}
        else:
            answer.body += event.get("body", b"")
            on_chunk(event.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.1"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(k.encode(), v.encode()) for k, v in (headers or {}).items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "scheme": "http",
    }
    await app(scope, receive, send)
    return answer


def frames(body: bytes) -> list[Any]:
    """The data of each frame, parsed; [DONE] as text, comments left out."""
    found: list[Any] = []
    for frame in body.decode().split("\n\n"):
        if frame.startswith("data: "):
            data = frame[6:]
            found.append(data if data == "[DONE]" else msgspec.json.decode(data))
    return found
