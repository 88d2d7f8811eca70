"""The snapshot that a worker routes by, kept fresh by the fleet process.

Gateway worker. The last snapshot outlives the connection to fleet, so a worker serves
while fleet restarts. What it says of a model that was loaded a moment ago may be old:
before a request is refused for it, `refresh` has fleet ask the nodes.

Invariant: a snapshot that is complete is never replaced by one that isn't: a fleet that
has just been born knows less than the one that died.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cortexd import snapshot as snapshots
from cortexd.following import follow_topics
from cortexd.rounds import Rounds
from cortexd.snapshot import Snapshot
from ipc.control import ControlClient, ControlClosed
from ipc.errors import ServiceError
from ipc.journal import Journal

TOPIC = "snapshot"
REFRESH = "refresh"
_REFRESH_S = 0.5
"""A refusal is not kept waiting by a node that is slow to say anything new."""


class Feed:
    """`on_snapshot` is called from the loop with each one that is taken; `known` is set
    once there is a complete one."""

    def __init__(
        self, path: Path, journal: Journal, on_snapshot: Callable[[Snapshot], None]
    ) -> None:
        self._path = path
        self._journal = journal
        self._on_snapshot = on_snapshot
        self._snapshot = snapshots.EMPTY
        self._client = ControlClient()
        self._refreshes = Rounds(self._ask_fleet)
        self.known = asyncio.Event()

    def snapshot(self) -> Snapshot:
        return self._snapshot

    async def follow(self) -> None:
        """Until cancelled."""
        await follow_topics(
            self._path,
            [TOPIC],
            self._take,
            on_away=self._tell,
            on_here=self._take_client,
        )

    async def refresh(self) -> None:
        """Return when the snapshot holds what the nodes say from now on, or when that
        takes too long: then it is what it was."""
        try:
            async with asyncio.timeout(_REFRESH_S):
                await self._refreshes.after_now()
        except TimeoutError:
            pass

    async def _ask_fleet(self) -> None:
        try:
            # the snapshot that comes of it is sent ahead of the answer
            await self._client.request(REFRESH, timeout_s=_REFRESH_S)
        except (ServiceError, TimeoutError):
            pass  # fleet is away or busy: the last snapshot stands

    def _take_client(self, client: ControlClient) -> None:
        self._client = client

    def _take(self, _topic: str, data: dict[str, Any]) -> None:
        try:
            new = snapshots.parse(data)
        except (KeyError, TypeError, ValueError) as error:
            raise ControlClosed("fleet sent what is no snapshot") from error
        if new.complete or not self._snapshot.complete:
            self._snapshot = new
            self._on_snapshot(new)
        if new.complete:
            self.known.set()

    def _tell(self, cause: str) -> None:
        words = "fleet is away; serving from the last snapshot"
        self._journal.warning(words, event="fleet.away", cause=cause)
