"""A worker's snapshot while fleet processes come and go, over a real socket."""

from __future__ import annotations

import asyncio
import io
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from cortexd import snapshot
from cortexd.feed import TOPIC, Feed
from cortexd.snapshot import Snapshot
from ipc.control import ControlServer
from ipc.journal import Journal
from ipc.unixsocket import bind_unix


def known(number: int, *, complete: bool) -> Snapshot:
    return snapshot.of(
        number=number, complete=complete, created_s=0, nodes=[], models=[]
    )


class Fleet:
    """A fleet process as far as workers see it."""

    def __init__(self, path: Path, first: dict[str, Any]) -> None:
        listener = bind_unix(path, socket.SOCK_STREAM, 0o600)
        self._server = ControlServer(
            listener,
            {},
            authorize=lambda peer: peer.uid == os.geteuid(),
            topics={TOPIC: lambda: first},
        )
        self._server.start(asyncio.get_running_loop())
        self.close = self._server.close

    def push(self, data: dict[str, Any]) -> None:
        self._server.publish(TOPIC, data)


class Worker:
    def __init__(self, path: Path) -> None:
        self.said = io.StringIO()
        self.taken: list[int] = []
        journal = Journal("test", stream=self.said, mode="text")
        self.feed = Feed(path, journal, lambda new: self.taken.append(new.number))
        self.task = asyncio.ensure_future(self.feed.follow())

    async def has(self, number: int) -> None:
        while self.feed.snapshot().number != number:
            await asyncio.sleep(0.01)

    async def says(self, words: str) -> None:
        while words not in self.said.getvalue():
            await asyncio.sleep(0.01)


def fed(folder: Path, work: Callable[[Worker, Path], Awaitable[None]]) -> None:
    path = folder / "fleet.sock"

    async def run() -> None:
        worker = Worker(path)
        async with asyncio.timeout(15):
            await work(worker, path)
        worker.task.cancel()
        await asyncio.gather(worker.task, return_exceptions=True)

    uvloop.run(run())


def test_a_worker_takes_each_snapshot(tmp_path: Path) -> None:
    async def work(worker: Worker, path: Path) -> None:
        fleet = Fleet(path, known(1, complete=False).plain())
        await worker.has(1)
        assert not worker.feed.known.is_set()
        fleet.push(known(2, complete=True).plain())
        await worker.has(2)
        assert worker.feed.known.is_set()
        fleet.close()

    fed(tmp_path, work)


def test_the_last_snapshot_outlives_the_fleet(tmp_path: Path) -> None:
    async def work(worker: Worker, path: Path) -> None:
        fleet = Fleet(path, known(7, complete=True).plain())
        await worker.has(7)
        fleet.close()
        await worker.says("serving from the last snapshot")
        assert worker.feed.snapshot().number == 7

    fed(tmp_path, work)


def test_a_newborn_fleet_does_not_take_away_what_the_old_one_knew(
    tmp_path: Path,
) -> None:
    async def work(worker: Worker, path: Path) -> None:
        old = Fleet(path, known(7, complete=True).plain())
        await worker.has(7)
        old.close()
        new = Fleet(path, known(1, complete=False).plain())
        while not any(client.topics for client in new._server.connections):
            await asyncio.sleep(0.01)
        new.push(known(2, complete=False).plain())
        new.push(known(3, complete=True).plain())
        await worker.has(3)
        assert worker.taken == [7, 3]
        new.close()

    fed(tmp_path, work)


def test_what_is_no_snapshot_is_not_taken(tmp_path: Path) -> None:
    async def work(worker: Worker, path: Path) -> None:
        fleet = Fleet(path, known(7, complete=True).plain())
        await worker.has(7)
        fleet.push({"number": 8})
        await worker.says("fleet is away")
        assert worker.feed.snapshot().number == 7
        fleet.close()

    fed(tmp_path, work)


def test_a_refresh_is_in_vain_while_fleet_is_away_and_ends_all_the_same(
    tmp_path: Path,
) -> None:
    async def work(worker: Worker, path: Path) -> None:
        await worker.feed.refresh()
        fleet = Fleet(path, known(3, complete=True).plain())
        await worker.has(3)
        await worker.feed.refresh()  # this one knows no such operation
        fleet.close()
        await worker.says("closed the connection")
        await worker.feed.refresh()
        assert worker.feed.snapshot().number == 3

    fed(tmp_path, work)
