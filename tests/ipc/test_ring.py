"""The ring between two honest ends: order, wrap-around, fullness, sleep, fences."""

from __future__ import annotations

import os
import random
import signal
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc import fence
from ipc.ring import (
    MIN_CAPACITY_BYTES,
    Consumer,
    Producer,
    RecordTooLarge,
    RingCorrupt,
    RingFull,
    create_ring,
)
from tests.ipc.ringkit import Barriers, ring

CAPACITIES = st.sampled_from([64, 128, 1024, 4096])
PUTS_AND_GETS = st.lists(st.one_of(st.none(), st.binary(max_size=700)), max_size=120)


@settings(max_examples=250, deadline=None)
@given(CAPACITIES, st.booleans(), PUTS_AND_GETS)
def test_records_come_out_whole_in_order_and_fullness_is_exact(
    capacity: int, checksum: bool, script: list[bytes | None]
) -> None:
    """A model beside the ring: bytes used, with what is skipped at the end."""
    expected: deque[tuple[bytes, int]] = deque()
    used = head = 0
    with ring(capacity, checksum=checksum) as ends:
        for record in script:
            if record is None:
                assert ends.take() == (expected[0][0] if expected else None)
                used -= expected.popleft()[1] if expected else 0
                continue
            if len(record) > capacity // 2 - 16:
                with pytest.raises(RecordTooLarge):
                    ends.producer.put(record)
                continue
            size = 16 + -(-len(record) // 16) * 16
            room = capacity - head % capacity
            size += room if size > room else 0
            if used + size > capacity:
                with pytest.raises(RingFull):
                    ends.producer.put(record)
                continue
            ends.producer.put(record)
            expected.append((record, size))
            head += size
            used += size
            assert ends.producer.used_bytes == used
        assert ends.take_all() == [record for record, _ in expected]
        assert ends.producer.used_bytes == 0


@pytest.mark.parametrize("capacity", [64, 256, 4096, 1 << 20])
def test_the_largest_record_fits_an_empty_ring_at_every_offset(capacity: int) -> None:
    largest = capacity // 2 - 16
    with ring(capacity) as ends:
        for step in range(40):
            record = bytes([step]) * largest
            ends.producer.put(record)
            assert ends.take() == record
            ends.producer.put(b"")  # shifts the next one
            ends.take()
        with pytest.raises(RecordTooLarge, match=f"at most {largest}"):
            ends.producer.put(bytes(largest + 1))


def test_a_full_ring_refuses_counts_and_recovers() -> None:
    with ring(256) as ends:
        for _ in range(8):
            ends.producer.put(b"0123456789abcdef")
        assert ends.producer.used_bytes == 256
        for _ in range(3):
            with pytest.raises(RingFull):
                ends.producer.put(b"")
        assert ends.producer.full_events == 3
        ends.take()
        ends.producer.put(b"fits again")
        assert ends.take_all()[-1] == b"fits again"


def test_empty_records_and_memoryviews_are_records() -> None:
    with ring() as ends:
        ends.producer.put(b"")
        ends.producer.put(memoryview(b"a view")[2:])
        assert ends.take_all() == [b"", b"view"]


def test_a_record_stays_until_it_is_advanced_over() -> None:
    with ring() as ends:
        ends.producer.put(b"one")
        ends.producer.put(b"two")
        first, view = ends.consumer.get(), ends.consumer.get()
        assert view is not None
        assert first is view
        assert bytes(view) == b"one"
        ends.consumer.advance()
        with pytest.raises(ValueError, match="released"):
            bytes(view)
        ends.consumer.advance()
        assert ends.take() == b"two"


def test_an_end_closes_with_a_record_in_hand() -> None:
    with ring() as ends:
        ends.producer.put(b"one")
        ends.consumer.get()


@pytest.mark.parametrize("capacity", [0, 32, 100, MIN_CAPACITY_BYTES + 1])
def test_a_capacity_that_is_no_power_of_two_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        create_ring(capacity, generation=1)


def test_checksums_are_on_by_themselves_only_where_order_is_weak() -> None:
    fd = create_ring(64, generation=1)
    producer = Producer(os.dup(fd), generation=1)
    assert producer.has_checksums is not fence.machine().strong
    producer.close()
    os.close(fd)


# sleep and bells


def test_the_bell_is_wanted_once_for_each_sleep() -> None:
    with ring() as ends:
        assert not ends.producer.put(b"awake")
        ends.take_all()
        for _ in range(3):
            assert ends.consumer.park()
            assert ends.producer.put(b"asleep")
            assert not ends.producer.put(b"rung for already")
            ends.consumer.unpark()
            assert not ends.producer.put(b"awake")
            ends.take_all()


def test_a_ring_with_records_lets_nobody_sleep() -> None:
    with ring() as ends:
        ends.producer.put(b"waits")
        assert not ends.consumer.park()
        assert not ends.producer.put(b"the consumer is awake")


def test_a_record_published_while_the_consumer_falls_asleep_is_seen() -> None:
    barriers = Barriers()
    with ring(consumer_on=barriers.machine(strong=True)) as ends:
        barriers.before = lambda: ends.producer.put(b"just in time")
        assert not ends.consumer.park()
        assert ends.take() == b"just in time"


def test_waking_twice_is_waking_once() -> None:
    with ring() as ends:
        ends.consumer.unpark()
        assert ends.consumer.park()
        ends.consumer.unpark()
        ends.consumer.unpark()
        assert ends.consumer.park()
        assert ends.producer.put(b"asleep")


# machines


def test_a_strong_machine_fences_before_sleep_only() -> None:
    barriers = Barriers()
    machine = barriers.machine(strong=True)
    with ring(256, producer_on=machine, consumer_on=machine) as ends:
        opened = barriers.calls
        for _ in range(50):
            ends.producer.put(b"record")
            ends.take()
        assert barriers.calls == opened
        ends.consumer.park()
        assert barriers.calls == opened + 1


def test_a_weak_machine_fences_once_for_each_head_that_it_sees() -> None:
    barriers = Barriers()
    with ring(consumer_on=barriers.machine(strong=False)) as ends:
        for _ in range(5):
            ends.producer.put(b"record")
        opened = barriers.calls
        assert len(ends.take_all()) == 5
        assert barriers.calls == opened + 1
        ends.producer.put(b"record")
        ends.take_all()
        assert barriers.calls == opened + 2


def test_a_weak_machine_fences_before_it_writes_over_freed_bytes() -> None:
    barriers = Barriers()
    with ring(64, producer_on=barriers.machine(strong=False)) as ends:
        opened = barriers.calls
        for _ in range(10):
            ends.producer.put(b"sixteen bytes...")
            ends.take()
        assert barriers.calls == opened + 4  # each second record needs room


def test_a_weak_machine_whose_barriers_fail_later_trusts_nothing_more() -> None:
    barriers = Barriers()
    with ring(64, consumer_on=barriers.machine(strong=False)) as ends:
        ends.producer.put(b"record")
        barriers.works = False
        with pytest.raises(RingCorrupt, match="membarrier"):
            ends.consumer.get()


def test_a_weak_machine_without_barriers_opens_no_ring() -> None:
    barriers = Barriers()
    barriers.works = False
    fd = create_ring(64, generation=1)
    with pytest.raises(fence.UnsupportedMachine):
        Consumer(fd, generation=1, machine=barriers.machine(strong=False))


def test_a_consumer_without_barriers_is_rung_for_every_record() -> None:
    barriers = Barriers()
    barriers.works = False
    with ring(consumer_on=barriers.machine(strong=True)) as ends:
        assert ends.producer.put(b"awake")
        assert ends.producer.put(b"and again")
        assert not ends.consumer.park()
        ends.take_all()
        assert ends.consumer.park()
        ends.consumer.unpark()
        assert ends.producer.put(b"always")


def test_a_consumer_that_loses_its_barriers_is_rung_for_every_record() -> None:
    barriers = Barriers()
    with ring(consumer_on=barriers.machine(strong=True)) as ends:
        assert not ends.producer.put(b"awake")
        ends.take_all()
        barriers.works = False
        assert ends.consumer.park()
        ends.consumer.unpark()
        assert ends.producer.put(b"always")
        assert ends.producer.put(b"always")


def test_a_producer_that_no_barrier_reaches_rings_for_every_record() -> None:
    barriers = Barriers()
    barriers.works = False
    with ring(producer_on=barriers.machine(strong=True)) as ends:
        assert ends.producer.put(b"awake")
        assert ends.producer.put(b"and again")


# lives


def test_a_new_consumer_goes_on_at_the_record_in_hand() -> None:
    with ring(256) as ends:
        for number in range(9):
            ends.producer.put(b"%d" % number)
            if number < 6:
                ends.take()
        ends.consumer.get()
        heir = Consumer(os.dup(ends.fd), generation=7)
        view = heir.get()
        assert view is not None
        assert bytes(view) == b"6"
        heir.close()


def test_a_new_producer_goes_on_where_the_last_one_published() -> None:
    with ring(256) as ends:
        for number in range(7):
            ends.producer.put(b"%d" % number)
            ends.take()
        ends.producer.put(b"last words")
        heir = Producer(os.dup(ends.fd), generation=7)
        heir.put(b"first words")
        assert ends.take_all() == [b"last words", b"first words"]
        heir.close()


def test_a_sleeper_is_rung_for_by_a_new_producer_too() -> None:
    with ring() as ends:
        ends.consumer.park()
        assert ends.producer.put(b"one")
        heir = Producer(os.dup(ends.fd), generation=7)
        assert heir.put(b"two")
        heir.close()


@pytest.mark.parametrize("capacity", [1 << 10, 1 << 16])
def test_two_processes_exchange_records_of_all_sizes_over_many_laps(
    capacity: int,
) -> None:
    rng = random.Random(capacity)
    sizes = [rng.randrange(capacity // 2 - 16) for _ in range(64)]
    pool = [rng.randbytes(size) for size in sizes]
    fd = create_ring(capacity, generation=1, checksum=True)
    pid = os.fork()
    if pid == 0:
        producer = Producer(fd, generation=1)
        sent = 0
        while sent < 3000:
            try:
                producer.put(pool[sent % 64])
                sent += 1
            except RingFull:
                os.sched_yield()
        os._exit(0)
    consumer = Consumer(fd, generation=1)
    try:
        for number in range(3000):
            while (view := consumer.get()) is None:
                assert os.waitpid(pid, os.WNOHANG) == (0, 0)
                os.sched_yield()  # there may be one core for both
            assert bytes(view) == pool[number % 64]
            consumer.advance()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        consumer.close()
