"""The latch: a record is read whole, whenever its writer stops."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import time

import pytest

from ipc.latch import Latch
from tests.ipc.processkit import PATIENCE_S, finish, fork, wait_for

_CAPACITY = 4096
_SLOTS_AT = 64
_SLOT_BYTES = (Latch.size_bytes(_CAPACITY) - _SLOTS_AT) // 2


def _ends() -> tuple[Latch, Latch, memoryview]:
    """Writer, reader, and the memory for someone who cheats."""
    mapping = mmap.mmap(-1, Latch.size_bytes(_CAPACITY))
    view = memoryview(mapping)
    writer = Latch(view[:], capacity_bytes=_CAPACITY)
    reader = Latch(view[:].toreadonly(), capacity_bytes=_CAPACITY)
    return writer, reader, view


def test_nothing_is_read_before_the_first_write() -> None:
    _, reader, _ = _ends()
    assert reader.read() is None


def test_the_last_record_is_read_whatever_the_sizes_before() -> None:
    writer, reader, _ = _ends()
    for size in (10, 4096, 0, 1, 4095, 3):
        writer.write(bytes([size & 0xFF]) * size)
        assert reader.read() == bytes([size & 0xFF]) * size


def test_a_record_without_room_is_refused_and_the_last_one_stays() -> None:
    writer, reader, _ = _ends()
    writer.write(b"good")
    with pytest.raises(ValueError, match="4097 bytes"):
        writer.write(b"x" * 4097)
    assert reader.read() == b"good"


def test_a_writer_that_stops_half_way_leaves_the_last_record() -> None:
    writer, reader, view = _ends()
    writer.write(b"first")
    writer.write(b"second")
    start = _SLOTS_AT + _SLOT_BYTES  # sequence 3 goes to slot 1
    view[start : start + 20] = struct.pack("<QI", 3, 5) + b"halfway!"
    assert reader.read() == b"second"
    writer.write(b"third")
    assert reader.read() == b"third"


def test_a_new_writer_goes_on_where_the_old_one_stopped() -> None:
    writer, reader, view = _ends()
    writer.write(b"of the first")
    Latch(view[:], capacity_bytes=_CAPACITY).write(b"of the second")
    assert reader.read() == b"of the second"


@pytest.mark.parametrize("offset", [0, 4, 8, 11, 12, 15, 16, 20])
def test_damage_anywhere_in_the_current_slot_reads_as_nothing(offset: int) -> None:
    writer, reader, view = _ends()
    writer.write(b"first")
    start = _SLOTS_AT + _SLOT_BYTES
    view[start + offset] ^= 0x41
    assert reader.read() is None


def test_a_sequence_from_nowhere_reads_as_nothing() -> None:
    writer, reader, view = _ends()
    writer.write(b"first")
    for sequence in (2, 3, 2**63, 2**64 - 1):
        view[:8] = struct.pack("=Q", sequence)
        assert reader.read() is None


def test_the_sequence_survives_its_own_end() -> None:
    writer, reader, view = _ends()
    view[:8] = struct.pack("=Q", 2**64 - 2)
    writer.write(b"last")
    assert reader.read() == b"last"
    writer.write(b"zero, which says that there is none")
    writer.write(b"one")
    assert reader.read() == b"one"


def _record(number: int) -> bytes:
    return struct.pack("<Q", number) * (1 + number % 512)


def test_a_hammering_writer_is_never_read_torn_and_never_backwards() -> None:
    writer, reader, view = _ends()

    def hammer() -> None:
        number = 0
        while True:
            number += 1
            writer.write(_record(number))

    pid = fork(hammer)
    wait_for(reader.read)
    last = seen = 0
    end_s = time.monotonic() + PATIENCE_S
    while seen < 300 and time.monotonic() < end_s:
        record = reader.read()
        if record is None:
            continue  # lapped at every try: possible, and no lie
        (number,) = struct.unpack_from("<Q", record)
        assert record == _record(number)
        assert number >= last
        seen += number > last
        last = number
    finish(pid)
    assert seen == 300, "the writer was running"


def test_a_writer_killed_at_any_point_leaves_a_whole_record() -> None:
    for _ in range(60):
        writer, reader, _ = _ends()

        def hammer(writer: Latch = writer) -> None:
            number = 0
            while True:
                number += 1
                writer.write(_record(number))

        pid = fork(hammer)
        wait_for(reader.read)
        finish(pid)
        record = reader.read()
        assert record is not None
        assert record == _record(struct.unpack_from("<Q", record)[0])


def test_a_stopped_writer_does_not_keep_its_reader_waiting() -> None:
    writer, reader, _ = _ends()

    def hammer() -> None:
        number = 0
        while True:
            number += 1
            writer.write(_record(number))

    pid = fork(hammer)
    wait_for(reader.read)
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    first = reader.read()
    assert first is not None
    assert first == reader.read()
    finish(pid)


def test_a_released_latch_lets_its_mapping_close() -> None:
    mapping = mmap.mmap(-1, Latch.size_bytes(64))
    view = memoryview(mapping)
    latch = Latch(view[:], capacity_bytes=64)
    latch.release()
    view.release()
    mapping.close()
