"""The snapshot that a worker routes by, kept fresh by the fleet process.

Gateway worker. One connection to fleet.sock, renewed when it ends; the last snapshot
outlives the connection, so a worker serves while fleet restarts.

Invariant: a snapshot that is complete is never replaced by one that isn't: a fleet that
has just been born knows less than the one that died.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cortexd import snapshot as snapshots
from cortexd.snapshot import Snapshot
from ipc.control import ControlClient, ControlClosed
from ipc.errors import ServiceError, cause_chain
from ipc.journal import Journal

TOPIC = "snapshot"
_CONNECT_TIMEOUT_S = 5.0
_RETRY_S = 0.2


class Feed:
    """`on_snapshot` is called from the loop with each one that is taken."""

    def __init__(
        self, path: Path, journal: Journal, on_snapshot: Callable[[Snapshot], None]
    ) -> None:
        self._path = path
        self._journal = journal
        self._on_snapshot = on_snapshot
        self._snapshot = snapshots.EMPTY

    def snapshot(self) -> Snapshot:
        return self._snapshot

    async def follow(self) -> None:
        """Keep the connection until cancelled."""
        while True:
            try:
                await self._follow_once()
                cause = "it closed the connection"
            except (OSError, ServiceError) as error:
                cause = " <- ".join(cause_chain(error))
            self._journal.warning(
                "fleet is away; serving from the last snapshot",
                event="fleet.away",
                cause=cause,
            )
            await asyncio.sleep(_RETRY_S)

    async def _follow_once(self) -> None:
        client = ControlClient()
        await client.connect(self._path, _CONNECT_TIMEOUT_S)
        try:
            await client.subscribe([TOPIC], self._take)
            await client.closed
        finally:
            client.close()

    def _take(self, _topic: str, data: dict[str, Any]) -> None:
        try:
            new = snapshots.parse(data)
        except (KeyError, TypeError, ValueError) as error:
            raise ControlClosed("fleet sent no snapshot") from error
        if new.complete or not self._snapshot.complete:
            self._snapshot = new
            self._on_snapshot(new)
