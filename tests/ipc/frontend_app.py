"""A tiny ASGI app, and the arbiter that serves it, for test_frontend.

Runs as `python -m tests.ipc.frontend_app SETTINGS-AS-JSON`. What the app sees of its
requests' lives goes to the file named in `extra["log"]`, a line each.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ipc.frontend import FrontendSettings, run

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def build(extra: dict[str, Any]) -> App:
    """The factory; it fails while a file stands in its way."""
    if Path(extra["obstacle"]).exists():
        raise RuntimeError("told not to boot")
    if "boot_s" in extra:
        with open(extra["log"], "a") as file:
            file.write("booting\n")
        time.sleep(extra["boot_s"])
    return App(Path(extra["log"]), extra)


def worker_gone(pid: int) -> None:
    """The child_exit hook; the arbiter runs it."""
    with open(os.environ["CHILD_EXIT_LOG"], "a") as file:
        file.write(f"{pid}\n")


class App:
    """GET /worker, /stall, /flood, /fail, /stream?n=EVENTS&ms=BETWEEN; POST /length."""

    def __init__(self, log: Path, extra: dict[str, Any]) -> None:
        self._log = log
        self._extra = extra

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        pairs = scope["query_string"].decode().split("&")
        query = dict(pair.split("=") for pair in pairs if pair)
        query |= {"scheme": scope["scheme"], "root": scope["root_path"]}
        handler = getattr(self, "on_" + scope["path"].strip("/"))
        await handler(receive, send, query)

    def _note(self, line: str) -> None:
        with self._log.open("a") as file:
            file.write(line + "\n")

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            kind = (await receive())["type"]
            self._note(kind)
            if self._extra.get("fail_startup"):
                raise RuntimeError("told not to start")
            if kind == "lifespan.shutdown":
                await asyncio.sleep(self._extra.get("shutdown_s", 0))
                self._note("shutdown done")
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return

    async def on_worker(self, _receive: Receive, send: Send, query: Message) -> None:
        facts = {
            "scheme": query["scheme"],
            "root": query["root"],
            "pid": os.getpid(),
            "number": int(os.environ["CORTEX_WORKER"]),
            "loop": type(asyncio.get_running_loop()).__module__,
            "environ": sorted(os.environ),
            "titles": [_title("self"), _title(str(os.getppid()))],
        }
        await _answer(send, json.dumps(facts).encode())

    async def on_length(self, receive: Receive, send: Send, _query: Message) -> None:
        length = 0
        while True:
            message = await receive()
            length += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        await _answer(send, str(length).encode())

    async def on_stream(self, _receive: Receive, send: Send, query: Message) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            for number in range(int(query["n"])):
                await _send_body(send, b"data: %d\n\n" % number, more=True)
                await asyncio.sleep(int(query["ms"]) / 1000)
            await _send_body(send, b"data: [DONE]\n\n", more=False)
        except asyncio.CancelledError:
            self._note("stream cancelled")
            raise

    async def on_stall(self, _receive: Receive, _send: Send, _query: Message) -> None:
        """Waits as a prefill does: nothing is sent."""
        self._note("stall begun")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self._note("stall cancelled")
            raise

    async def on_flood(self, _receive: Receive, send: Send, _query: Message) -> None:
        """More than all buffers between us and the client hold."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            for _ in range(64):
                await _send_body(send, bytes(1 << 20), more=True)
            await _send_body(send, b"", more=False)
        except asyncio.CancelledError:
            self._note("flood cancelled")
            raise

    async def on_fail(self, _receive: Receive, _send: Send, _query: Message) -> None:
        try:
            raise KeyError("handle")
        except KeyError as error:
            raise RuntimeError("the handler's secret") from error


async def _answer(send: Send, body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await _send_body(send, body, more=False)


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _title(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    run(FrontendSettings(**given | {"fds": tuple(given["fds"])}))
