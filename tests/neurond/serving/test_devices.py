"""Channels to devices over real rings: picked, replaced, dropped, broken."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Awaitable, Callable

from ipc.channel import DeviceEnd, create_pair
from ipc.journal import Journal
from ipc.messages import Accepted, Submit
from neurond.serving.devices import DeviceLine, Devices
from neurond.serving.requests import RequestTable
from tests.neurond.serving.lines import Heard, submit


class Bench:
    def __init__(self) -> None:
        self.table = RequestTable(first_id=1, max_entries=8)
        self.broken = 0
        journal = Journal("test", stream=io.StringIO(), mode="text")
        self.devices = Devices(self.table, journal, self.note_broken)
        self.ends: list[DeviceEnd] = []

    def note_broken(self) -> None:
        self.broken += 1

    def up(self, device: str, generation: int) -> DeviceEnd:
        pair = create_pair(generation=generation)
        copy = pair.duplicate()
        self.devices.on_pair(device, generation, pair)
        end = DeviceEnd(copy, generation=generation)
        self.ends.append(end)
        return end

    def send(self, device: str) -> Heard:
        heard = Heard()
        line = self.line(device)
        self.table.submit(device, line, submit(), heard)
        return heard

    def line(self, device: str) -> DeviceLine:
        line = self.devices.pick([device])
        assert line is not None
        return line

    def close(self) -> None:
        self.devices.on_lost()
        for end in self.ends:
            end.close()


def run(play: Callable[[Bench], Awaitable[None]]) -> None:
    async def work() -> None:
        fds_before = len(os.listdir("/proc/self/fd"))
        bench = Bench()
        try:
            await play(bench)
        finally:
            bench.close()
        assert len(os.listdir("/proc/self/fd")) == fds_before

    asyncio.run(asyncio.wait_for(work(), 10))


async def heard_within(heard: Heard, names: list[str]) -> None:
    async with asyncio.timeout(5):
        while heard.names != names:
            await asyncio.sleep(0.001)


def test_a_request_crosses_the_ring_and_its_answer_comes_back() -> None:
    async def play(bench: Bench) -> None:
        end = bench.up("gpu-0", 1)
        heard = bench.send("gpu-0")
        (message,) = end.receive()
        assert isinstance(message, Submit)
        assert end.send(Accepted(message.id, 0, 0))
        await heard_within(heard, ["accepted"])

    run(play)


def test_the_device_that_does_least_for_this_worker_is_picked() -> None:
    async def play(bench: Bench) -> None:
        bench.up("gpu-0", 1)
        bench.up("gpu-1", 1)
        bench.send("gpu-0")
        picked = bench.devices.pick(["gpu-0", "gpu-1", "gpu-9"])
        assert picked is not None
        assert picked.device == "gpu-1"
        assert bench.devices.pick(["gpu-9"]) is None

    run(play)


def test_down_closes_the_channel_and_parks_its_requests_at_once() -> None:
    async def play(bench: Bench) -> None:
        end = bench.up("gpu-0", 1)
        heard = bench.send("gpu-0")
        (message,) = end.receive()
        end.send(Accepted(message.id, 0, 0))  # published, never read
        bench.devices.on_down("gpu-0", 1, "killed")
        await asyncio.sleep(0)
        assert heard.events == []
        assert [e.submit.id for e in bench.table.parked] == [message.id]
        assert bench.devices.pick(["gpu-0"]) is None

    run(play)


def test_the_next_life_is_given_what_the_last_one_had() -> None:
    async def play(bench: Bench) -> None:
        bench.up("gpu-0", 1)
        heard = bench.send("gpu-0")
        bench.devices.on_down("gpu-0", 1, "killed", ((1, 3),))
        end = bench.up("gpu-0", 2)
        (message,) = end.receive()
        assert isinstance(message, Submit)
        told = (message.id, message.attempt, message.trial_group)
        assert told == (1, 1, 3)
        assert end.send(Accepted(message.id, 0, 0))
        await heard_within(heard, ["accepted"])

    run(play)


def test_a_convicted_request_is_not_given_to_the_next_life() -> None:
    async def play(bench: Bench) -> None:
        bench.up("gpu-0", 1)
        heard = bench.send("gpu-0")
        bench.devices.on_down("gpu-0", 1, "killed", (), (1,))
        assert heard.events == [("failed", "request_quarantined")]
        assert bench.up("gpu-0", 2).receive() == []

    run(play)


def test_a_late_down_of_an_older_life_does_not_touch_the_newer_one() -> None:
    async def play(bench: Bench) -> None:
        bench.up("gpu-0", 2)
        bench.devices.on_down("gpu-0", 1, "killed")
        assert bench.line("gpu-0").generation == 2

    run(play)


def test_a_new_pair_replaces_the_old_one_and_takes_its_requests() -> None:
    async def play(bench: Bench) -> None:
        bench.up("gpu-0", 1)
        heard = bench.send("gpu-0")
        end = bench.up("gpu-0", 2)
        assert [message.id for message in end.receive()] == [1]
        assert heard.names == []
        assert bench.line("gpu-0").generation == 2

    run(play)


def test_a_lost_supervisor_takes_every_channel_with_it() -> None:
    async def play(bench: Bench) -> None:
        bench.up("gpu-0", 1)
        bench.up("gpu-1", 1)
        heard = bench.send("gpu-0"), bench.send("gpu-1")
        bench.devices.on_lost()
        assert bench.devices.pick(["gpu-0", "gpu-1"]) is None
        assert len(bench.table.parked) == len(heard)
        again = bench.up("gpu-0", 1), bench.up("gpu-1", 1)  # to the next supervisor
        assert [end.receive()[0].id for end in again] == [1, 2]
        assert heard[0].names == heard[1].names == []

    run(play)


def test_a_broken_channel_is_reported_and_costs_its_own_requests_only() -> None:
    async def play(bench: Bench) -> None:
        bad = bench.up("gpu-0", 1)
        bench.up("gpu-1", 1)
        heard = bench.send("gpu-0"), bench.send("gpu-1")
        bad.send(submit())  # type: ignore[arg-type]  # goes down only
        async with asyncio.timeout(5):
            while not bench.broken:
                await asyncio.sleep(0.001)
        assert [entry.submit.id for entry in bench.table.parked] == [1]
        assert heard[0].names == heard[1].names == []
        assert bench.devices.pick(["gpu-0"]) is None

    run(play)
