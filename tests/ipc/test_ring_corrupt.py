"""The ring against a peer that writes nonsense: dropped, never believed."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc import memory
from ipc.ring import (
    HEADER_BYTES,
    Consumer,
    Producer,
    RingCorrupt,
    RingFull,
    create_ring,
)
from tests.ipc.ringkit import (
    CAPACITY,
    GENERATION,
    HEAD,
    MAGIC,
    SLEEP,
    TAIL,
    VERSION,
    Ends,
    ring,
)

SKIP = 0xFFFF_FFFF


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (MAGIC, 0),
        (VERSION, 2),
        (GENERATION, 6),
        (CAPACITY, 64),
        (CAPACITY, 0),
        (CAPACITY, 8192),
        (HEAD, 8),
        (HEAD, 4096 + 16),
        (HEAD, 2**64 - 16),
        (TAIL, 16),
        (TAIL, 2**64 - 16),
    ],
)
def test_a_header_that_is_wrong_opens_at_neither_end(word: int, value: int) -> None:
    with ring() as ends:
        ends.set_word(word, value)
        for end in (Producer, Consumer):
            with pytest.raises(RingCorrupt):
                end(os.dup(ends.fd), generation=7)


def test_indexes_near_the_end_of_their_words_are_refused() -> None:
    with ring() as ends:
        ends.set_word(HEAD, 2**63)
        ends.set_word(TAIL, 2**63)
        with pytest.raises(RingCorrupt):
            Producer(os.dup(ends.fd), generation=7)


@pytest.mark.parametrize("size_bytes", [1, HEADER_BYTES, HEADER_BYTES + 32])
def test_a_segment_too_small_for_a_ring_is_refused(size_bytes: int) -> None:
    with pytest.raises(RingCorrupt):
        Consumer(memory.create(size_bytes, sealed=False), generation=7)


def test_a_segment_whose_size_is_no_power_of_two_is_refused() -> None:
    with ring() as ends:
        fd = memory.create(HEADER_BYTES + 96, sealed=False)
        with memory.attach(os.dup(fd), minimum_bytes=1) as other:
            other[:64] = ends.raw[:64]
            other[CAPACITY * 8] = 96
            other[CAPACITY * 8 + 1] = 0
        with pytest.raises(RingCorrupt, match="capacity 96 in 96 bytes"):
            Consumer(fd, generation=7)


def _after_two_records(ends: Ends) -> None:
    """head 64, tail 32: one record consumed, one waits."""
    ends.producer.put(b"first")
    ends.producer.put(b"second")
    assert ends.take() == b"first"
    assert ends.take() == b"second"
    assert ends.producer.used_bytes == 0


@pytest.mark.parametrize("head", [65, 72, 32, 0, 64 + 4096 + 16, 2**62 + 16, 2**64 - 1])
def test_a_head_out_of_bounds_drops_the_producer(head: int) -> None:
    with ring() as ends:
        _after_two_records(ends)
        ends.set_word(HEAD, head)
        with pytest.raises(RingCorrupt, match=f"head {head}"):
            ends.consumer.get()


@pytest.mark.parametrize("tail", [65, 72, 80, 2**64 - 1, 32, 0])
def test_a_tail_out_of_bounds_drops_the_consumer(tail: int) -> None:
    with ring() as ends:
        _after_two_records(ends)
        ends.set_word(TAIL, tail)
        with pytest.raises(RingCorrupt, match=f"tail {tail}"):
            assert ends.producer.used_bytes


def test_a_tail_out_of_bounds_is_noticed_when_room_is_needed() -> None:
    with ring(64) as ends:
        ends.producer.put(b"sixteen bytes...")
        ends.producer.put(b"sixteen bytes...")
        ends.set_word(TAIL, 2**40)
        with pytest.raises(RingCorrupt):
            ends.producer.put(b"")


@pytest.mark.parametrize(
    ("length", "position"),
    [
        (17, 64),  # over the published head
        (4096, 64),
        (SKIP - 1, 64),
        (5, 0),  # of another lap
        (5, 65),
        (SKIP, 0),
        (SKIP, 64),  # nothing more before the end, although head says there is
    ],
)
def test_a_record_that_does_not_fit_its_span_drops_the_producer(
    length: int, position: int
) -> None:
    with ring(checksum=False) as ends:
        _after_two_records(ends)
        ends.producer.put(b"third")
        ends.set_record(64, length, 0, position)
        for _ in range(2):
            with pytest.raises(RingCorrupt, match="record of"):
                ends.consumer.get()


def _at_offset_224_of_256(ends: Ends) -> None:
    for _ in range(7):
        ends.producer.put(b"sixteen bytes...")
        ends.take()


def test_a_record_over_the_end_of_the_memory_drops_the_producer() -> None:
    with ring(256, checksum=False) as ends:
        _at_offset_224_of_256(ends)
        ends.set_record(224, 17, 0, 224)
        ends.set_word(HEAD, 224 + 64)
        with pytest.raises(RingCorrupt, match="record of 17"):
            ends.consumer.get()


@pytest.mark.parametrize(
    ("skip_position", "next_length"),
    [(224, SKIP), (0, 16), (224 + 256, 16)],
    ids=["a skip to a skip", "of an earlier lap", "of a later lap"],
)
def test_a_false_skip_drops_the_producer(skip_position: int, next_length: int) -> None:
    with ring(256, checksum=False) as ends:
        _at_offset_224_of_256(ends)
        ends.set_record(224, SKIP, 0, skip_position)
        ends.set_record(0, next_length, 0, 256)
        ends.set_word(HEAD, 256 + 32)
        with pytest.raises(RingCorrupt):
            ends.consumer.get()


def test_a_flipped_bit_is_caught_by_the_checksum_and_the_end_still_closes() -> None:
    with ring() as ends:
        ends.producer.put(b"payload")
        ends.raw[HEADER_BYTES + 16] ^= 1
        with pytest.raises(RingCorrupt, match="checksum") as caught:
            ends.consumer.get()
        ends.consumer.close()
        assert caught.value


@given(st.integers(0, 2**64 - 1))
def test_a_consumer_sleeps_whatever_stood_in_its_sleep_word(word: int) -> None:
    with ring() as ends:
        ends.set_word(SLEEP, word)
        heir = Consumer(os.dup(ends.fd), generation=7)
        assert heir.park()
        assert ends.producer.put(b"asleep")
        heir.unpark()
        assert not ends.producer.put(b"awake")
        heir.close()


RECORDS = st.lists(st.binary(max_size=100), min_size=1, max_size=12)
DAMAGE = st.lists(st.tuples(st.integers(0, 1023), st.binary(min_size=1, max_size=24)))


@settings(max_examples=300, deadline=None)
@given(RECORDS, RECORDS, DAMAGE, st.none() | st.integers(0, 2**64 - 1))
def test_damage_anywhere_gives_a_true_prefix_or_corrupt(
    before: list[bytes],
    records: list[bytes],
    damage: list[tuple[int, bytes]],
    head: int | None,
) -> None:
    with ring(1024) as ends:
        for record in before:
            if ends.producer.used_bytes < 500:
                ends.producer.put(record)
                ends.take()
        put = _put_while_room(ends, records)
        for offset, junk in damage:
            start = HEADER_BYTES + offset
            ends.raw[start : start + len(junk)] = junk[: 1024 - offset]
        if head is not None:
            ends.set_word(HEAD, head)
        got: list[bytes] = []
        try:
            while (record_or_none := ends.take()) is not None:
                got.append(record_or_none)
        except RingCorrupt:
            pass
        assert got == put[: len(got)]


def _put_while_room(ends: Ends, records: list[bytes]) -> list[bytes]:
    put = []
    for record in records:
        try:
            ends.producer.put(record)
        except RingFull:
            break
        put.append(record)
    return put


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 600), max_size=8))
def test_a_producer_survives_any_consumer_line(words: list[int]) -> None:
    with ring(256) as ends:
        for word in words:
            ends.set_word(TAIL, word)
            ends.set_word(SLEEP, word ^ 1)
            try:
                assert ends.producer.put(b"sixteen bytes...") in (True, False)
                assert 0 <= ends.producer.used_bytes <= 256
            except (RingFull, RingCorrupt):
                continue


def test_a_ring_can_be_created_sealed() -> None:
    fd = create_ring(64, generation=1, sealed=True)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    Consumer(fd, generation=1).close()
