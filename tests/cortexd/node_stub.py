"""A node on loopback that does as it is told, also when that is wrong.

A real HTTP server in a thread, with the API of a node. How it answers a chat is chosen
by `chat`; what it saw stands in `asked` and `left`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

USAGE = b': usage {"prompt_tokens":7,"completion_tokens":3,"cached_tokens":2}\n\n'
DONE = b"data: [DONE]\n\n"
BUSY = {
    "message": "every seat is taken",
    "type": "rate_limit_error",
    "param": None,
    "code": "queue_full",
    "request_id": "the-nodes-own",
}


def chunk(text: str) -> bytes:
    delta = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [delta]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def role() -> bytes:
    delta = {"index": 0, "delta": {"role": "assistant", "content": ""}}
    return b"data: " + json.dumps({"choices": [delta]}).encode() + b"\n\n"


def model_fact(model: str, status: str = "loaded", **more: Any) -> dict[str, Any]:
    return {
        "id": model,
        "status": status,
        "servable": {"ok": True, "reason": ""},
        "percent": 100 if status == "loaded" else 10,
        "eta_s": None,
        "context": 8192,
        "devices": ["cpu-0"],
        "capabilities": {"chat": True, "vision": False},
        **more,
    }


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Behaviour:
    """`chat` names a method below; the rest are its parameters."""

    chat: str = "answer"
    num_frames: int = 3
    pause_s: float = 0.0
    piece_bytes: int = 0
    status: int = 200
    body: bytes = b""
    mute: bool = False
    state: str = "ready"
    models: list[dict[str, Any]] = field(default_factory=list)
    listen: dict[str, str] = field(default_factory=dict)
    running: int = 0
    residency: int = 1
    health: list[dict[str, Any]] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)


class NodeStub:
    """Use as a context manager; `stop` and `start` take it down and up again."""

    def __init__(self, *models: str) -> None:
        self._first = models or ("m",)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.reset()

    def reset(self) -> None:
        models = [model_fact(model) for model in self._first]
        self.does = Behaviour(models=models)
        self.asked: list[Request] = []
        self.polled: list[Request] = []
        self.left = 0
        self.num_connections = 0

    def __enter__(self) -> NodeStub:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def start(self) -> None:
        self._run(self._listen())

    def stop(self) -> None:
        """Nobody listens any more, and every connection is cut."""
        self._run(self._close())

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def event(self, kind: str = "device.died") -> None:
        """Tell those who follow /events that something happened."""
        self._kind = kind
        self._loop.call_soon_threadsafe(self._happened.set)

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(5)

    async def _listen(self) -> None:
        self._happened = asyncio.Event()
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", self.port, backlog=256
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.num_connections += 1
        try:
            while (request := await _read(reader)) is not None:
                if not await self._serve(request, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(
        self, request: Request, reader: asyncio.StreamReader, writer: Any
    ) -> bool:
        """Whether the connection goes on."""
        if request.method == "POST":
            self.asked.append(request)
            answer: Callable[..., Awaitable[bool]] = getattr(self, f"_{self.does.chat}")
            return await self._watched(answer(request, writer), reader)
        self.polled.append(request)
        if request.path in self.does.statuses:
            await _send(writer, self.does.statuses[request.path], b"{}", {})
            return True
        if request.path == "/events":
            return await self._watched(self._events(writer), reader)
        if self.does.mute:
            await asyncio.sleep(60)
        await self._poll(request, writer)
        return True

    async def _watched(
        self, answer: Awaitable[bool], reader: asyncio.StreamReader
    ) -> bool:
        """Answer, but stop when the client goes; count those who went."""
        answering = asyncio.ensure_future(answer)
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait(
                {answering, leaving}, return_when=asyncio.FIRST_COMPLETED
            )
            if not answering.done() or answering.exception() is not None:
                self.left += 1
                return False
            return answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    # ---- polls ----------------------------------------------------------------------

    async def _poll(self, request: Request, writer: Any) -> None:
        does = self.does
        tag = f'"boot.{does.residency}"'
        if request.path == "/models" and request.headers.get("if-none-match") == tag:
            await _send(writer, 304, b"", {"etag": tag})
            return
        device = {
            "device": "cpu-0",
            "state": "ready",
            "pid": 1,
            "generation": 1,
            "models": [fact["id"] for fact in does.models],
            "running": does.running,
            "waiting": 0,
        }
        keys = ("id", "status", "servable", "percent")
        documents = {
            "/health": {
                "state": does.state,
                "health": does.health,
                "devices": [device],
                "models": [{k: fact[k] for k in keys} for fact in does.models],
            },
            "/models": {"state": does.state, "models": does.models},
            "/discovery": {
                "version": {"cortex": "0.1"},
                "listen": does.listen,
                "devices": [device],
            },
        }
        document = documents.get(request.path)
        status = 200 if document is not None else 404
        headers = {"etag": tag} if request.path == "/models" else {}
        await _send(writer, status, json.dumps(document).encode(), headers)

    async def _events(self, writer: Any) -> bool:
        await _begin(writer)
        while True:
            self._happened.clear()
            await _chunk(writer, b": keep-alive\n\n")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._happened.wait()
                    await _chunk(
                        writer, b"id: 1\nevent: %b\ndata: {}\n\n" % self._kind.encode()
                    )

    # ---- chats ----------------------------------------------------------------------

    def frames(self) -> list[bytes]:
        """What a stream has between its role and its usage."""
        return [chunk(f"w{i} ") for i in range(self.does.num_frames)]

    async def _answer(self, request: Request, writer: Any) -> bool:
        if not request.json.get("stream"):
            await asyncio.sleep(self.does.pause_s)
            await _send(writer, 200, completion(), {})
            return True
        await _begin(writer)
        async for piece in self._stream([*self.frames(), USAGE, DONE]):
            await _chunk(writer, piece)
        await _end(writer)
        return True

    async def _stream(self, frames: list[bytes]) -> AsyncIterator[bytes]:
        yield role()
        for frame in frames:
            await asyncio.sleep(self.does.pause_s)
            size = self.does.piece_bytes or len(frame)
            for at in range(0, len(frame), size):
                yield frame[at : at + size]
                await asyncio.sleep(0)

    async def _no_answer(self, _request: Request, _writer: Any) -> bool:
        """Close before the first byte."""
        return False

    async def _hang(self, _request: Request, _writer: Any) -> bool:
        await asyncio.sleep(60)
        return False

    async def _hold_the_frame(self, _request: Request, writer: Any) -> bool:
        """A head, half a frame, and then nothing."""
        await _begin(writer)
        await _chunk(writer, role()[:20])
        await asyncio.sleep(60)
        return False

    async def _no_frame(self, _request: Request, writer: Any) -> bool:
        """Close between the head and the first frame."""
        await _begin(writer)
        await _chunk(writer, role()[:20])
        return False

    async def _die(self, _request: Request, writer: Any) -> bool:
        """Close in the middle of a frame."""
        await _begin(writer)
        async for piece in self._stream(self.frames()):
            await _chunk(writer, piece)
        await _chunk(writer, chunk("never shown")[:25])
        return False

    async def _fall_silent(self, _request: Request, writer: Any) -> bool:
        await _begin(writer)
        await _chunk(writer, role() + b"".join(self.frames()))
        await asyncio.sleep(60)
        return False

    async def _forget_the_end(self, _request: Request, writer: Any) -> bool:
        """A clean end of the body, but no terminal event."""
        await _begin(writer)
        await _chunk(writer, role() + b"".join(self.frames()))
        await _end(writer)
        return True

    async def _fail(self, _request: Request, writer: Any) -> bool:
        """An error event of the node."""
        await _begin(writer)
        await _chunk(writer, role() + chunk("w0 "))
        await _chunk(writer, b'data: {"error":{"message":"the device died"}}\n\n')
        await _end(writer)
        return True

    async def _flood(self, _request: Request, writer: Any) -> bool:
        """More than anybody reads."""
        await _begin(writer)
        while True:
            await _chunk(writer, chunk("x" * 65536))

    async def _refuse(self, _request: Request, writer: Any) -> bool:
        """`status` and `body`, whatever they are."""
        headers = {"retry-after": "3"} if self.does.status in (429, 503) else {}
        await _send(writer, self.does.status, self.does.body, headers)
        return True

    async def _babble(self, _request: Request, writer: Any) -> bool:
        """No HTTP."""
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
        await writer.drain()
        return True

    async def _dribble(self, _request: Request, writer: Any) -> bool:
        """A head that comes byte by byte."""
        await asyncio.sleep(self.does.pause_s)
        body = completion()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        for byte in head + body:
            writer.write(bytes([byte]))
            await writer.drain()
        return True

    async def _cut_short(self, _request: Request, writer: Any) -> bool:
        """Close in the middle of a whole answer."""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{")
        await writer.drain()
        return False


def completion() -> bytes:
    usage = {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    message = {"role": "assistant", "content": "w0 w1 w2"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"id": "c", "choices": [choice], "usage": usage}).encode()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, path, _ = first.split(" ")
    pairs = [line.split(": ", 1) for line in lines]
    headers = {name.lower(): value for name, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, body)


async def _send(writer: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    kind = "application/json"
    pairs = {"content-type": kind, "content-length": str(len(body)), **headers}
    lines = "".join([f"{name}: {value}\r\n" for name, value in pairs.items()])
    writer.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + body)
    await writer.drain()


async def _begin(writer: Any) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    await writer.drain()


async def _chunk(writer: Any, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
    await writer.drain()


async def _end(writer: Any) -> None:
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def until(condition: Callable[[], Any], within_s: float = 10.0) -> Any:
    """Poll until it holds; its value."""
    end_s = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < end_s, "it did not come to be"
        time.sleep(0.01)
    return value
