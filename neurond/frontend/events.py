"""GET /events: the node's state changes as server-sent events.

Front-end worker. The worker follows the supervisor's "events" topic once; every reader
has a bounded queue of its own. `Last-Event-ID` brings what was missed, from the event
log, and each event at most once.

Invariant: a reader that doesn't read costs a bounded queue, and then its connection;
no reader holds up a stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from ipc.errors import ClientError
from neurond.frontend.node import Facts, Node
from neurond.serving.edge import Request, Response, exchange_of

_MAX_QUEUED = 256
_MAX_MISSED = 1000
_KEEP_ALIVE_S = 1.0
_ORDER_TIMEOUT_S = 5.0
_LAST = "node.stopping"
"""Nothing is told behind it; a stop would wait for its readers to leave."""

Reader = asyncio.Queue[Facts | None]
"""None: it fell behind, the stream ends."""


class EventHub:
    """Passes each event to every reader."""

    def __init__(self) -> None:
        self._readers: set[Reader] = set()

    @property
    def num_readers(self) -> int:
        return len(self._readers)

    def publish(self, event: Facts) -> None:
        for reader in list(self._readers):
            if reader.qsize() < _MAX_QUEUED:
                reader.put_nowait(event)
            else:
                self._readers.discard(reader)
                reader.put_nowait(None)

    def join(self) -> tuple[Reader, Callable[[], None]]:
        """A reader, and how to leave."""
        reader: Reader = asyncio.Queue()
        self._readers.add(reader)
        return reader, lambda: self._readers.discard(reader)


class EventsResource:
    def __init__(self, node: Node, hub: EventHub) -> None:
        self._node = node
        self._hub = hub

    async def on_get(self, req: Request, resp: Response) -> None:
        last_id = _last_event_id(req)
        reader, leave = self._hub.join()
        exchange_of(req).on_close(leave)
        missed = await self._missed(last_id) if last_id is not None else []
        resp.content_type = "text/event-stream"
        resp.set_header("cache-control", "no-cache")
        resp.stream = _frames(missed, reader)

    async def _missed(self, last_id: int) -> list[Facts]:
        args = {"since": last_id, "limit": _MAX_MISSED}
        answer = await self._node.order("events", args, _ORDER_TIMEOUT_S)
        events: list[Facts] = answer["events"]
        return events


async def _frames(missed: list[Facts], reader: Reader) -> AsyncIterator[bytes]:
    yield b": events\n\n"
    last_id = -1
    for event in missed:
        last_id = event["id"]
        yield _frame(event)
    while True:
        try:
            event_or_end = await asyncio.wait_for(reader.get(), _KEEP_ALIVE_S)
        except TimeoutError:
            yield b": keep-alive\n\n"
            continue
        if event_or_end is None:
            return
        if event_or_end["id"] > last_id:
            last_id = event_or_end["id"]
            yield _frame(event_or_end)
        if event_or_end["kind"] == _LAST:
            return


def _frame(event: Facts) -> bytes:
    data = msgspec.json.encode(event)
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (
        event["id"], str(event["kind"]).encode(), data
    )  # fmt: skip


def _last_event_id(req: Request) -> int | None:
    value: Any = req.get_header("last-event-id")
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise ClientError("Last-Event-ID must be a number", param="last-event-id")
    return int(value)
