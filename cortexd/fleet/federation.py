"""The nodes of the fleet and everybody who follows them.

Fleet process. Each node's poller brings records; they are published together, at most
20 times a second, so that a thousand nodes don't make a thousand messages. For a worker
that is about to refuse a request all nodes are asked at once.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from dataclasses import replace
from typing import Any

from cortexd import facts
from cortexd.config import Settings
from cortexd.feed import REFRESH
from cortexd.fleet.follower import follow
from cortexd.fleet.poller import NodeRecord, Pace, Poller
from cortexd.fleet.view import snapshot_of
from cortexd.nodes import endpoint
from cortexd.nodes.pool import Pool
from cortexd.rounds import Rounds
from cortexd.snapshot import EMPTY, Snapshot
from ipc.control import ControlServer
from ipc.journal import Journal
from ipc.peer import Peer

_LEAST_GAP_S = 0.05
_REFRESH_GAP_S = 0.2
"""Requests for what nobody has are no storm of polls."""
_EVENTS: dict[tuple[str, str], str] = {
    ("unknown", "up"): "node.up",
    ("down", "up"): "node.up",
    ("unknown", "down"): "node.down",
    ("up", "down"): "node.down",
}


class Federation:
    def __init__(self, settings: Settings, journal: Journal) -> None:
        self._catalogue = settings.catalogue
        self._journal = journal
        self._born_s = time.time()
        self._snapshot = EMPTY
        self._publishing: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        gateway = settings.config.gateway
        pace = Pace(gateway.poll_interval_s, gateway.node_timeout_s)
        self._pools = {
            neuron.name: Pool(
                endpoint.parse(neuron.endpoint),
                token=neuron.token,
                connect_timeout_s=gateway.connect_timeout_s,
            )
            for neuron in settings.config.neurons
        }
        self._refreshes = Rounds(self._poll_all, least_gap_s=_REFRESH_GAP_S)
        self._pollers = [
            Poller(name, pool, pace, self._on_record)
            for name, pool in self._pools.items()
        ]

    def start(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._server = ControlServer(
            listener,
            {"status": self._status, REFRESH: self._refresh},
            authorize=_is_ours,
            topics={
                "snapshot": lambda: self._snapshot.plain(),
                "state": self._facts,
                "events": None,
            },
        )
        self._publish()
        self._server.start(loop)
        for poller, pool in zip(self._pollers, self._pools.values(), strict=True):
            self._tasks.append(loop.create_task(poller.run()))
            self._tasks.append(loop.create_task(follow(pool, poller.wake)))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._refreshes.cancel()
        if self._publishing is not None:
            self._publishing.cancel()
        self._server.close()
        for pool in self._pools.values():
            pool.close()

    @property
    def _records(self) -> list[NodeRecord]:
        return [poller.record for poller in self._pollers]

    def _on_record(self, old: NodeRecord, new: NodeRecord) -> None:
        kind = _EVENTS.get((old.standing.state, new.standing.state))
        if kind is not None:
            self._tell(kind, new)
        if self._publishing is None:
            loop = asyncio.get_running_loop()
            self._publishing = loop.call_later(_LEAST_GAP_S, self._publish)

    def _tell(self, kind: str, record: NodeRecord) -> None:
        write = self._journal.info if kind == "node.up" else self._journal.error
        words = f"node {record.name} is {record.standing.state}"
        write(words, event=kind, node=record.name, cause=record.reason or None)
        event = {"kind": kind, "node": record.name, "reason": record.reason}
        self._server.publish("events", event)

    def _publish(self) -> None:
        self._publishing = None
        new = self._next_snapshot()
        if replace(new, number=self._snapshot.number) != self._snapshot:
            self._snapshot = new
            self._server.publish("snapshot", new.plain())
        self._server.publish("state", self._facts())

    async def _refresh(self, _args: dict[str, Any], _peer: Peer) -> dict[str, Any]:
        """Ask every node now, and publish what they say ahead of the answer."""
        await self._refreshes.after_now()
        return {}

    async def _poll_all(self) -> None:
        await asyncio.gather(*[poller.fresh() for poller in self._pollers])
        if self._publishing is not None:
            self._publishing.cancel()
            self._publish()

    def _next_snapshot(self) -> Snapshot:
        return snapshot_of(
            self._records,
            self._catalogue,
            number=self._snapshot.number + 1,
            created_s=self._born_s,
        )

    def _facts(self) -> dict[str, Any]:
        return facts.of_fleet(self._records, self._catalogue, self._snapshot)

    async def _status(self, _args: dict[str, Any], _peer: Peer) -> dict[str, Any]:
        return self._facts()


def _is_ours(peer: Peer) -> bool:
    return peer.uid in (0, os.geteuid())
