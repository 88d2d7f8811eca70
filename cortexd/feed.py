"""The snapshot that a worker routes by, kept fresh by the fleet process.

Gateway worker. The last snapshot outlives the connection to fleet, so a worker serves
while fleet restarts.

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
from cortexd.snapshot import Snapshot
from ipc.control import ControlClosed
from ipc.journal import Journal

TOPIC = "snapshot"


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
        self.known = asyncio.Event()

    def snapshot(self) -> Snapshot:
        return self._snapshot

    async def follow(self) -> None:
        """Until cancelled."""
        await follow_topics(self._path, [TOPIC], self._take, on_away=self._tell)

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
