"""Slabs: large records whole, and no number of the peer's believed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.ring import RecordTooLarge, RingCorrupt, RingFull
from ipc.slabs import (
    ARENA_BYTES,
    NUM_SLABS,
    SLAB_BYTES,
    SlabReader,
    SlabWriter,
    create_arena,
    is_envelope,
    pack_envelope,
    unpack_envelope,
)


@pytest.fixture
def arena() -> Iterator[tuple[SlabWriter, SlabReader]]:
    fd = create_arena()
    writer, reader = SlabWriter(os.dup(fd)), SlabReader(fd)
    yield writer, reader
    writer.close()
    reader.close()


@pytest.mark.parametrize(
    "length", [1, SLAB_BYTES - 1, SLAB_BYTES, SLAB_BYTES + 1, ARENA_BYTES]
)
def test_a_record_comes_out_whole(
    arena: tuple[SlabWriter, SlabReader], length: int
) -> None:
    writer, reader = arena
    record = os.urandom(length)
    slabs = writer.write(record)
    assert reader.read(length, slabs) == record
    writer.free(slabs)
    assert writer.num_free == NUM_SLABS


def test_several_records_lie_beside_each_other(
    arena: tuple[SlabWriter, SlabReader],
) -> None:
    writer, reader = arena
    records = [os.urandom(200_000) for _ in range(5)]
    placed = [writer.write(record) for record in records]
    assert len({slab for slabs in placed for slab in slabs}) == 10
    for record, slabs in zip(records, placed, strict=True):
        assert reader.read(len(record), slabs) == record


def test_an_arena_without_enough_free_slabs_is_full_for_now(
    arena: tuple[SlabWriter, SlabReader],
) -> None:
    writer, _ = arena
    first = writer.write(bytes(31 * SLAB_BYTES))
    with pytest.raises(RingFull, match="2 slabs wanted, 1 free"):
        writer.write(bytes(SLAB_BYTES + 1))
    assert writer.num_free == 1
    writer.free(first)
    writer.write(bytes(SLAB_BYTES + 1))


def test_a_record_over_the_whole_arena_never_fits(
    arena: tuple[SlabWriter, SlabReader],
) -> None:
    with pytest.raises(RecordTooLarge):
        arena[0].write(bytes(ARENA_BYTES + 1))


@pytest.mark.parametrize("slab", [-1, 5, 2**40])
def test_a_slab_that_is_not_lent_cannot_be_given_back(
    arena: tuple[SlabWriter, SlabReader], slab: int
) -> None:
    writer, _ = arena
    lent = writer.write(b"x")
    with pytest.raises(RingCorrupt, match="not lent"):
        writer.free([slab])
    writer.free(lent)
    with pytest.raises(RingCorrupt, match="not lent"):
        writer.free(lent)


@pytest.mark.parametrize(
    ("length", "slabs"),
    [
        (1, ()),
        (0, (1,)),
        (SLAB_BYTES, (1, 2)),
        (SLAB_BYTES + 1, (1,)),
        (5, (NUM_SLABS,)),
        (SLAB_BYTES * 2, (3, 3)),
    ],
)
def test_an_envelope_that_does_not_fit_is_refused(
    arena: tuple[SlabWriter, SlabReader], length: int, slabs: tuple[int, ...]
) -> None:
    with pytest.raises(RingCorrupt):
        arena[1].read(length, slabs)


def test_a_slab_may_not_be_filled_again_before_it_was_released(
    arena: tuple[SlabWriter, SlabReader],
) -> None:
    _, reader = arena
    reader.read(5, (7,))
    with pytest.raises(RingCorrupt, match="before"):
        reader.read(5, (7,))
    reader.unreleased.clear()
    reader.read(5, (7,))


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**32 - 1), max_size=40))
def test_an_envelope_is_unpacked_as_it_was_packed(
    length: int, slabs: list[int]
) -> None:
    record = pack_envelope(length, slabs)
    assert is_envelope(record)
    assert unpack_envelope(record) == (length, tuple(slabs))


@settings(max_examples=200)
@given(st.binary(max_size=64))
def test_any_bytes_are_an_envelope_or_corrupt(tail: bytes) -> None:
    try:
        length, slabs = unpack_envelope(b"\xc1" + tail)
    except RingCorrupt:
        return
    assert length >= 0
    assert all(slab >= 0 for slab in slabs)


def test_a_small_segment_is_no_arena() -> None:
    from ipc import memory

    with pytest.raises(RingCorrupt):
        SlabReader(memory.create(4096, sealed=False))
