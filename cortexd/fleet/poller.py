"""Asks one node how it is, again and again; a miss is counted, not believed at once.

Fleet process; one per node. Every poll has one deadline for all its questions. An event
of the node makes the next poll come at once: a dead device is known in milliseconds.

Invariant: `record` is never changed, only replaced; the old facts of a node that is
down stay in it, since its models are known and only out of reach.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cortexd.fleet.reading import STARTING, BadAnswer, Reading, read, starting
from cortexd.nodes.endpoint import Endpoint
from cortexd.nodes.http import NodeError
from cortexd.nodes.pool import Answer, Patience, Pool, Request
from cortexd.standing import NodeStanding, answered, missed
from ipc.errors import cause_chain

_LEAST_PAUSE_S = 0.02
_MAX_BODY_BYTES = 64 << 20
_READY = 200
_NOT_MODIFIED = 304
_NOT_READY = 503


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node as it was at its last poll. `reading` is None until it first answered;
    `reason` says why the last poll was missed."""

    name: str
    endpoint: Endpoint
    standing: NodeStanding
    reading: Reading | None = None
    latency_ms: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Pace:
    interval_s: float
    timeout_s: float


OnRecord = Callable[[NodeRecord, NodeRecord], None]


class Poller:
    """`on_record` gets the old and the new record after each poll."""

    def __init__(
        self,
        name: str,
        pool: Pool,
        pace: Pace,
        on_record: OnRecord,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        standing = NodeStanding("unknown", clock())
        self.record = NodeRecord(name, pool.endpoint, standing)
        self._pool = pool
        self._pace = pace
        self._on_record = on_record
        self._clock = clock
        self._wanted = asyncio.Event()
        self._next_poll: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Poll now: something happened on the node."""
        self._wanted.set()

    async def fresh(self) -> None:
        """Poll, and return when that is done; nothing if the last poll was missed, or
        questions of ours would give a node up before its time (S25)."""
        if self.record.standing.state != "up" or self.record.standing.misses:
            return
        if self._next_poll is None:
            self._next_poll = asyncio.get_running_loop().create_future()
        self.wake()
        await asyncio.shield(self._next_poll)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wanted.clear()
            asked, self._next_poll = self._next_poll, None
            await self.poll()
            if asked is not None:
                asked.set_result(None)
            await asyncio.sleep(
                _LEAST_PAUSE_S
            )  # a storm of events is no storm of polls
            try:
                async with asyncio.timeout(self._pace.interval_s):
                    await self._wanted.wait()
            except TimeoutError:
                pass

    async def poll(self) -> None:
        old = self.record
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(self._pace.timeout_s):
                reading = await self._read(old.reading or STARTING)
        except TimeoutError:
            new = self._missed(f"no answer in {self._pace.timeout_s:g} s")
        except NodeError as error:
            new = self._missed(" <- ".join(cause_chain(error)))
        else:
            new = replace(
                old,
                standing=answered(old.standing, self._clock()),
                reading=reading,
                latency_ms=round((time.monotonic() - began_s) * 1000, 1),
                reason="",
            )
        self.record = new
        self._on_record(old, new)

    def _missed(self, reason: str) -> NodeRecord:
        standing = missed(self.record.standing, self._clock())
        return replace(self.record, standing=standing, reason=reason)

    async def _read(self, old: Reading) -> Reading:
        """Raises NodeError."""
        status, health, _ = await self._get("/health")
        if status not in (_READY, _NOT_READY):
            raise BadAnswer(f"/health answered {status}")
        tag = (("If-None-Match", old.etag),) if old.etag else ()
        status, models, etag = await self._get("/models", tag)
        if status == _NOT_READY:
            return starting(old)
        if status not in (_READY, _NOT_MODIFIED):
            raise BadAnswer(f"/models answered {status}")
        found, discovery, _ = await self._get("/discovery")
        if found != _READY:
            raise BadAnswer(f"/discovery answered {found}")
        fresh = None if status == _NOT_MODIFIED else models
        return read(health, fresh, discovery, etag=etag or old.etag, old=old)

    async def _get(
        self, path: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> tuple[int, bytes, str]:
        """Status, body, etag. Raises NodeError."""
        request = Request("GET", path, (("Accept", "application/json"), *headers))
        patience = Patience(self._pace.timeout_s)
        answer = await self._pool.request(request, patience)
        try:
            body = await answer.read_all(_MAX_BODY_BYTES)
            return answer.status, body, _etag(answer)
        finally:
            answer.release()


def _etag(answer: Answer) -> str:
    """It goes back in a header of ours: only what a tag may be made of."""
    etag = answer.header(b"etag")
    return etag if etag.isascii() and etag.isprintable() else ""
