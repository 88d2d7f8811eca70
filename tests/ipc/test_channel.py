"""The channel: both ends, real rings, a real loop, honest and dishonest peers."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import select
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from ipc.bell import Bell
from ipc.channel import (
    ChannelBroken,
    DeviceEnd,
    PairFds,
    WorkerEnd,
    create_pair,
)
from ipc.messages import (
    Accepted,
    Cancel,
    Failed,
    RingDown,
    RingUp,
    Sampling,
    SlabsFree,
    Submit,
    TokenRow,
    Tokens,
    encode,
)
from ipc.ring import Producer, RecordTooLarge, RingFull
from ipc.slabs import NUM_SLABS, SLAB_BYTES, pack_envelope
from tests.ipc.ringkit import HEAD, TAIL

GENERATION = 3


def submit(number: int, num_ids: int = 5) -> Submit:
    ids = tuple(range(70_000, 70_000 + num_ids))
    return Submit(
        number, 1, "m", ids, num_ids, 0, 9, Sampling(), 16, (2,), "", "p", 0, 0.0, ""
    )


class Pair:
    """Both ends of one pair, and what the worker was told."""

    def __init__(self, *, capacity_bytes: int = 1 << 18, sealed: bool = False) -> None:
        self.fds = create_pair(
            generation=GENERATION, capacity_bytes=capacity_bytes, sealed=sealed
        )
        self.got: list[RingUp] = []
        self.broken: list[Exception] = []
        self.on_message: Callable[[RingUp], object] = lambda _: None
        self.device = DeviceEnd(self.fds.duplicate(), generation=GENERATION)
        self.worker = WorkerEnd(
            self.fds.duplicate(),
            generation=GENERATION,
            on_message=self._receive,
            on_broken=self.broken.append,
        )

    def _receive(self, message: RingUp) -> None:
        self.got.append(message)
        self.on_message(message)

    def close(self) -> None:
        self.worker.close()
        self.device.close()
        self.fds.close()

    def as_worker(self) -> Producer:
        """The down ring in a worker that may cheat."""
        return Producer(os.dup(self.fds.down_ring), generation=GENERATION)

    def as_device(self) -> Producer:
        return Producer(os.dup(self.fds.up_ring), generation=GENERATION)


def in_loop(scenario: Callable[[Pair], Coroutine[Any, Any, None]], **how: Any) -> Pair:
    """Run the scenario in uvloop with a started worker end."""

    async def run() -> Pair:
        pair = Pair(**how)
        pair.worker.start(asyncio.get_running_loop())
        try:
            await asyncio.wait_for(scenario(pair), 10)
        finally:
            pair.close()
        return pair

    pair: Pair = uvloop.run(run())
    return pair


def fill(worker: WorkerEnd) -> None:
    for number in range(1000):
        worker.submit(Cancel(number))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


def rings(bell: int | Bell) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


def num_fds() -> int:
    gc.collect()  # what earlier tests dropped must not go in the middle of this one
    return len(os.listdir("/proc/self/fd"))


# messages


def test_what_a_worker_submits_the_device_receives_in_order() -> None:
    async def scenario(pair: Pair) -> None:
        sent: list[RingDown] = [submit(1), Cancel(1), submit(2, 0)]
        for message in sent:
            pair.worker.submit(message)
        assert pair.device.receive() == sent
        assert pair.device.receive() == []

    in_loop(scenario)


def test_receive_takes_no_more_than_its_limit() -> None:
    async def scenario(pair: Pair) -> None:
        for number in range(10):
            pair.worker.submit(Cancel(number))
        assert len(pair.device.receive(limit=4)) == 4
        assert not pair.device.park()
        assert len(pair.device.receive()) == 6

    in_loop(scenario)


def test_what_a_device_sends_wakes_the_worker() -> None:
    sent: list[RingUp] = [
        Accepted(1, 0, 0),
        Tokens((TokenRow(1, 0, (5,)),)),
        Failed(1, ["x"]),
    ]

    async def scenario(pair: Pair) -> None:
        for message in sent:
            await asyncio.sleep(0.002)  # long enough for the worker to park
            assert pair.device.send(message)
        await until(lambda: len(pair.got) == 3)
        assert not rings(pair.fds.up_bell)

    assert in_loop(scenario).got == sent


def test_more_than_a_batch_arrives_and_other_tasks_get_their_turn() -> None:
    turns = 0

    async def scenario(pair: Pair) -> None:
        nonlocal turns
        for number in range(300):
            pair.device.send(Accepted(number, 0, 0))
        while len(pair.got) < 300:
            os.eventfd_write(pair.fds.up_bell, 1)  # a spare ring is no second round
            turns += 1
            await asyncio.sleep(0)

    assert [message.id for message in in_loop(scenario).got] == list(range(300))  # type: ignore[union-attr]
    assert turns >= 4


def test_what_was_published_before_the_worker_started_is_delivered() -> None:
    async def scenario() -> None:
        pair = Pair()
        pair.device.send(Accepted(1, 0, 0))
        pair.worker.start(asyncio.get_running_loop())
        await asyncio.wait_for(until(lambda: pair.got), 5)
        pair.close()

    uvloop.run(scenario())


def test_drain_delivers_all_at_once_without_a_loop() -> None:
    pair = Pair()
    for number in range(500):
        pair.device.send(Accepted(number, 0, 0))
    pair.worker.drain()
    assert len(pair.got) == 500
    pair.close()


def test_a_parked_device_is_woken_by_its_bell_and_only_then() -> None:
    async def scenario(pair: Pair) -> None:
        pair.worker.submit(Cancel(1))
        assert not rings(pair.device.bell)
        pair.device.receive()
        assert pair.device.park()
        assert not rings(pair.device.bell)
        pair.worker.submit(Cancel(2))
        assert rings(pair.device.bell)
        assert pair.device.receive() == [Cancel(2)]
        assert not rings(pair.device.bell)

    in_loop(scenario)


def test_a_device_that_woke_for_another_reason_is_not_rung_for() -> None:
    async def scenario(pair: Pair) -> None:
        assert pair.device.park()
        assert pair.device.receive() == []
        pair.worker.submit(Cancel(1))
        assert not rings(pair.device.bell)

    in_loop(scenario)


def test_a_full_up_ring_is_false_and_loses_nothing() -> None:
    async def scenario(pair: Pair) -> None:
        accepted = 0
        while pair.device.send(Accepted(accepted, 0, 0)):
            accepted += 1
        assert pair.device.full_events == 1
        assert pair.device.used_bytes > 3900
        await until(lambda: len(pair.got) == accepted)
        assert pair.device.used_bytes == 0
        assert pair.device.send(Accepted(accepted, 0, 0))
        await until(lambda: len(pair.got) == accepted + 1)

    in_loop(scenario, capacity_bytes=4096)


def test_a_full_down_ring_is_told_to_the_caller() -> None:
    async def scenario(pair: Pair) -> None:
        with pytest.raises(RingFull):
            fill(pair.worker)
        pair.device.receive(limit=1000)
        pair.worker.submit(Cancel(1))
        assert pair.broken == []

    in_loop(scenario, capacity_bytes=4096)


def test_a_message_too_large_for_the_up_ring_is_the_callers_mistake() -> None:
    pair = Pair(capacity_bytes=4096)
    with pytest.raises(RecordTooLarge):
        pair.device.send(Failed(1, ["x" * 5000]))
    pair.close()


# slabs


@pytest.mark.parametrize("num_ids", [12_000, 13_107, 14_000, 200_000, 600_000])
def test_a_prompt_of_any_length_arrives_whole(num_ids: int) -> None:
    async def scenario(pair: Pair) -> None:
        for number in range(3):
            pair.worker.submit(submit(number, num_ids))
            assert pair.device.receive() == [submit(number, num_ids)]
            await until(lambda: pair.worker.num_free_slabs == NUM_SLABS)

    assert in_loop(scenario).got == []


def test_a_small_ring_sends_through_slabs_what_it_cannot_hold() -> None:
    async def scenario(pair: Pair) -> None:
        pair.worker.submit(submit(1, 1000))
        assert pair.worker.num_free_slabs == NUM_SLABS - 1
        assert pair.device.receive() == [submit(1, 1000)]

    in_loop(scenario, capacity_bytes=4096)


def test_more_than_the_arena_holds_is_full_for_now_or_never_fits() -> None:
    async def scenario(pair: Pair) -> None:
        pair.worker.submit(submit(1, 400_000))
        with pytest.raises(RingFull):
            pair.worker.submit(submit(2, 500_000))
        with pytest.raises(RecordTooLarge):
            pair.worker.submit(submit(3, 1_000_000))
        assert pair.device.receive() == [submit(1, 400_000)]
        await until(lambda: pair.worker.num_free_slabs == NUM_SLABS)
        pair.worker.submit(submit(2, 500_000))

    in_loop(scenario)


def test_slabs_come_back_when_the_ring_had_no_room_for_their_envelope() -> None:
    async def scenario(pair: Pair) -> None:
        with pytest.raises(RingFull):
            fill(pair.worker)
        with pytest.raises(RingFull):
            pair.worker.submit(submit(1, 2000))
        assert pair.worker.num_free_slabs == NUM_SLABS

    in_loop(scenario, capacity_bytes=4096)


def test_slabs_are_released_later_when_the_up_ring_is_full() -> None:
    async def scenario(pair: Pair) -> None:
        pair.worker.submit(submit(1, 2000))
        while pair.device.send(Accepted(1, 0, 0)):
            pass
        assert pair.device.receive() == [submit(1, 2000)]
        pair.worker.drain()
        assert pair.worker.num_free_slabs == NUM_SLABS - 1
        assert pair.device.receive() == []
        await until(lambda: pair.worker.num_free_slabs == NUM_SLABS)

    in_loop(scenario, capacity_bytes=4096)


# broken peers


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xc1",
        b"not msgpack",
        encode(Accepted(1, 0, 0)),
        pack_envelope(10, [NUM_SLABS]),
        pack_envelope(10, []),
        pack_envelope(SLAB_BYTES, [0]),  # a slab of zeros is no message
    ],
)
def test_a_device_drops_a_worker_that_sends_nonsense(record: bytes) -> None:
    pair = Pair()
    pair.as_worker().put(record)
    with pytest.raises(ChannelBroken):
        pair.device.receive()
    pair.close()


def test_a_device_drops_a_worker_that_breaks_an_index() -> None:
    pair = Pair(capacity_bytes=4096)
    junk = (12345).to_bytes(8, "little")
    os.pwrite(pair.fds.up_ring, junk, TAIL * 8)
    os.pwrite(pair.fds.down_ring, junk, HEAD * 8)
    with pytest.raises(ChannelBroken, match="head 12345"):
        pair.device.receive()
    with pytest.raises(ChannelBroken, match="tail 12345"):
        assert pair.device.used_bytes
    large = Failed(1, ["x" * 2000])
    assert pair.device.send(large)
    assert pair.device.send(large)
    with pytest.raises(ChannelBroken, match="tail 12345"):
        pair.device.send(large)
    pair.close()


@pytest.mark.parametrize(
    "record", [b"", b"junk", encode(Cancel(1)), encode(SlabsFree((0,)))]
)
def test_a_worker_drops_a_device_that_sends_nonsense(record: bytes) -> None:
    async def scenario(pair: Pair) -> None:
        pair.device.send(Accepted(1, 0, 0))
        if pair.as_device().put(record):
            os.eventfd_write(pair.fds.up_bell, 1)
        await until(lambda: pair.broken)
        with pytest.raises(ChannelBroken, match="closed"):
            pair.worker.submit(Cancel(1))
        pair.worker.drain()

    pair = in_loop(scenario)
    assert pair.got == [Accepted(1, 0, 0)]
    assert [type(error) for error in pair.broken] == [ChannelBroken]
    assert pair.broken[0].__cause__ is not None


@pytest.mark.parametrize("started", [True, False])
def test_a_device_that_breaks_an_index_is_noticed_by_submit(started: bool) -> None:
    async def scenario(pair: Pair) -> None:
        os.pwrite(pair.fds.down_ring, b"\xff" * 8, TAIL * 8)
        with pytest.raises(ChannelBroken, match="tail"):
            fill(pair.worker)
        assert pair.broken == []  # not while the caller is in the middle of it
        await asyncio.sleep(0)

    async def unstarted() -> Pair:
        pair = Pair(capacity_bytes=4096)
        await scenario(pair)
        pair.close()
        return pair

    if started:
        assert len(in_loop(scenario, capacity_bytes=4096).broken) == 1
    else:
        assert uvloop.run(unstarted()).broken == []


def test_ends_of_another_generation_are_refused_and_leave_no_descriptor() -> None:
    before = num_fds()
    fds = create_pair(generation=GENERATION)
    with pytest.raises(ChannelBroken, match="generation 3, expected 4"):
        DeviceEnd(fds.duplicate(), generation=4)
    with pytest.raises(ChannelBroken, match="generation 3, expected 4"):
        WorkerEnd(fds, generation=4, on_message=print, on_broken=print)
    assert num_fds() == before


# lives


def test_closing_leaves_no_descriptor_and_delivers_no_more() -> None:
    before = num_fds()
    pair = Pair(sealed=True)
    pair.device.send(Accepted(1, 0, 0))
    pair.worker.close()
    pair.worker.close()
    pair.worker.drain()
    pair.device.close()
    pair.fds.close()
    assert pair.got == []
    assert num_fds() == before


def test_a_worker_may_close_its_end_from_inside_a_message() -> None:
    async def scenario(pair: Pair) -> None:
        pair.on_message = lambda _: pair.worker.close()
        pair.device.send(Accepted(1, 0, 0))
        pair.device.send(Accepted(2, 0, 0))
        await until(lambda: pair.got)
        for _ in range(3):
            await asyncio.sleep(0)

    pair = in_loop(scenario)
    assert pair.got == [Accepted(1, 0, 0)]
    assert pair.broken == []


def test_a_callback_that_raises_is_reported_and_the_rest_arrives() -> None:
    reported: list[object] = []

    async def scenario(pair: Pair) -> None:
        def fail_once(_: RingUp) -> None:
            if len(pair.got) == 1:
                raise LookupError("a bug of the owner")

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda _, context: reported.append(context["exception"])
        )
        pair.on_message = fail_once
        for number in range(3):
            pair.device.send(Accepted(number, 0, 0))
        await until(lambda: len(pair.got) == 3)

    in_loop(scenario)
    assert [type(error) for error in reported] == [LookupError]


def test_creating_a_pair_without_descriptors_left_leaks_none() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = num_fds()
    for spare in range(5):
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, limits[1]))
        try:
            with pytest.raises(OSError, match="files"):
                create_pair(generation=1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert num_fds() == before


def _echo(fds: PairFds) -> None:
    """A device: answers each Submit with one Tokens record, sleeps when idle."""
    device = DeviceEnd(fds, generation=GENERATION)
    backlog: list[RingUp] = []
    while True:
        for message in device.receive():
            if isinstance(message, Submit):
                row = TokenRow(message.id, 0, (len(message.ids),))
                backlog.append(Tokens((row,)))
        while backlog and device.send(backlog[0]):
            backlog.pop(0)
        if device.park():
            select.select([device.bell], [], [], 5 if not backlog else 0)


def test_two_processes_never_miss_a_wake_up() -> None:
    """Each request is sent only when the last is answered, so both sleep each time."""
    told = asyncio.Event()

    async def scenario(pair: Pair) -> None:
        pair.on_message = lambda _: told.set()
        pid = os.fork()
        if pid == 0:
            _echo(pair.fds)
        try:
            for number in range(2000):
                told.clear()
                pair.worker.submit(submit(number, 20_000 if number % 100 == 0 else 5))
                await asyncio.wait_for(told.wait(), 5)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    pair = in_loop(scenario)
    assert [message.rows[0].id for message in pair.got] == list(range(2000))  # type: ignore[union-attr]
    assert pair.broken == []
