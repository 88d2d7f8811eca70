"""control.sock for a process with a loop: many requests at once, and topics.

Used by front-end workers, the fleet and metrics processes.

Invariant: a request ends with its answer, at its deadline, or when the connection does;
`closed` is done exactly when no answer and no event can come any more.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ipc.controlwire import SUBSCRIBE, ControlClosed, answer_of, event_of
from ipc.errors import ServiceError
from ipc.frames import FrameError, FrameReader, pack_frame
from ipc.unixsocket import try_connect_unix

if TYPE_CHECKING:
    from asyncio import BaseTransport, Future, Protocol, Transport
else:
    Protocol = object  # one by shape; importing asyncio is left to who has a loop

Facts = dict[str, Any]
OnEvent = Callable[[str, Facts], None]

_CONNECT_POLL_S = 0.01


class ControlClient:
    """One connection; for a new one make a new client."""

    closed: Future[None]
    """Done when the connection has ended, whoever ended it."""

    def __init__(self) -> None:
        self._transport: Transport | None = None
        self._reader = FrameReader()
        self._waiting: dict[int, Future[Facts]] = {}
        self._on_event: dict[str, OnEvent] = {}
        self._last_id = 0

    async def connect(self, path: str | os.PathLike[str], timeout_s: float) -> None:
        """Raises OSError when nobody listens; TimeoutError when nobody accepts."""
        import asyncio

        self._loop = asyncio.get_running_loop()
        self.closed = self._loop.create_future()
        async with asyncio.timeout(timeout_s):
            kind = socket.SOCK_STREAM
            while (sock := try_connect_unix(Path(path), kind)) is None:
                await asyncio.sleep(_CONNECT_POLL_S)
        sock.setblocking(False)
        await self._loop.connect_accepted_socket(lambda: _Protocol(self), sock)

    async def request(
        self, op: str, args: Mapping[str, Any] | None = None, timeout_s: float = 5.0
    ) -> Facts:
        """The answer. Raises the daemon's ServiceError, ControlClosed, TimeoutError."""
        import asyncio

        future = self._ask(op, args or {})
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            future.cancel()  # at the deadline; its answer will be ignored

    def subscribe(
        self, topics: Iterable[str], on_event: OnEvent, timeout_s: float = 5.0
    ) -> Awaitable[Facts]:
        """Ask for the topics at once; awaiting the result raises as `request` does.

        `on_event` is called for current values, then for each event, from the loop.
        """
        topics = list(topics)
        self._on_event.update(dict.fromkeys(topics, on_event))
        future = self._ask(SUBSCRIBE, {"topics": topics})
        future.add_done_callback(_look_at)  # nobody needs to await it
        self._loop.call_later(timeout_s, _expire, future)
        return future

    def close(self) -> None:
        """Requests in flight end with ControlClosed."""
        if self._transport is not None:
            self._transport.close()

    def _ask(self, op: str, args: Mapping[str, Any]) -> Future[Facts]:
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ControlClosed("not connected to the daemon")
        self._last_id = number = self._last_id + 1
        frame = pack_frame({"id": number, "op": op, "args": dict(args)})
        future: Future[Facts] = self._loop.create_future()
        self._waiting[number] = future
        future.add_done_callback(lambda _: self._waiting.pop(number, None))
        transport.write(frame)
        return future

    # -- called by the protocol

    def attach(self, transport: BaseTransport) -> None:
        self._transport = cast("Transport", transport)

    def take(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._deliver(frame)
        except (FrameError, ControlClosed):
            self.close()

    def _deliver(self, frame: Facts) -> None:
        event = event_of(frame)
        if event is None:
            self._settle(frame)
        elif event[0] in self._on_event:
            self._on_event[event[0]](*event)

    def _settle(self, frame: Facts) -> None:
        number = frame.get("id")
        if number is None:
            raise ControlClosed("the daemon refused what we sent")
        future = self._waiting.get(number) if isinstance(number, int) else None
        if future is None or future.done():
            return  # the request was given up
        try:
            future.set_result(answer_of(frame))
        except ServiceError as error:
            future.set_exception(error)

    def lost(self) -> None:
        self._transport = None
        for future in list(self._waiting.values()):
            if not future.done():
                future.set_exception(ControlClosed("the daemon closed the connection"))
        if not self.closed.done():
            self.closed.set_result(None)


class _Protocol(Protocol):
    """asyncio's side of a client."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client

    def connection_made(self, transport: BaseTransport) -> None:
        self._client.attach(transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self._client.lost()

    def data_received(self, data: bytes) -> None:
        self._client.take(data)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        pass  # requests are small; the daemon's answers pace us

    def resume_writing(self) -> None:
        pass


def _expire(future: Future[Facts]) -> None:
    if not future.done():
        future.set_exception(TimeoutError("no answer to a subscription"))


def _look_at(future: Future[Facts]) -> None:
    if not future.cancelled():
        future.exception()
