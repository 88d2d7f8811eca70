"""Byte ring in shared memory: one producer process, one consumer process, records.

The supervisor creates it; each end maps it once and lives as long as its peer. A ring
is never reset: the next life of a device gets a new one with the next generation.

Segment: a header of 4096 bytes, then `capacity` bytes (a power of two) of records.

    word (u64)  writer     meaning
     0          creator    magic
     1          creator    layout version
     2          creator    generation
     3          creator    capacity
     4          creator    1 = records carry a checksum
    16          producer   head: bytes ever published
    32          consumer   tail: bytes ever consumed
    33          consumer   sleep: odd = asleep, a new number for every sleep;
                           2**64 - 1 = no barriers here, ring after every record

Words of different writers are 128 bytes apart, out of reach of the adjacent-line
prefetch. Words are aligned, and a process writes one in a single store.

    record      u32 length | u32 crc32 or 0 | u64 position | payload | pad to 16 bytes

`position` is the head count at which the record begins, so bytes of an earlier lap
never pass for a record. length 0xFFFFFFFF: nothing more before the end of the memory,
go on at its start. A record takes at most half of the capacity; otherwise it might fit
nowhere.

Publishing: payload, then head; a producer killed half-way has published nothing.
Sleeping: the consumer writes `sleep`, fences, and looks at head once more; the producer
writes head, then reads `sleep`. Either the consumer sees the head or the producer the
sleep, and each sleep is rung for once. On weak machines each end also fences when it
sees the other's index move, before it reads, or writes over, what the index covers.

Invariant: nothing in shared memory is believed. Indexes must be aligned, must not run
backwards and must be at most one capacity apart; a record must lie inside that span.
Anything else is RingCorrupt, and the peer is dropped.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib

from ipc import fence, memory

HEADER_BYTES = 4096
MIN_CAPACITY_BYTES = 64

_MAGIC = 0x0047_4E49_5258_5443
_VERSION = 1
_HEAD, _TAIL, _SLEEP = 16, 32, 33
_UNFENCED = (1 << 64) - 1
_LIMIT = 1 << 62
"""No index and no sleep gets there in a life; ours never overflow their words."""
_HEADER = struct.Struct("=5Q")
_RECORD = struct.Struct("=IIQ")
_FRAME_BYTES = _RECORD.size
_SKIP = 0xFFFF_FFFF


class RingFull(Exception):
    """No room now."""


class RecordTooLarge(Exception):
    """No room ever: the record is over half of the capacity."""


class RingCorrupt(Exception):
    """The peer broke the layout. Drop it; never resynchronise."""


def create_ring(
    capacity_bytes: int,
    *,
    generation: int,
    sealed: bool = False,
    checksum: bool | None = None,
) -> int:
    """A new ring's descriptor. `checksum` None: where memory order is weak."""
    if capacity_bytes < MIN_CAPACITY_BYTES or capacity_bytes & (capacity_bytes - 1):
        raise ValueError(f"capacity {capacity_bytes} is no power of two")
    if checksum is None:
        checksum = not fence.machine().strong
    header = _HEADER.pack(_MAGIC, _VERSION, generation, capacity_bytes, checksum)
    fd = memory.create(HEADER_BYTES + capacity_bytes, sealed=sealed)
    os.pwrite(fd, header, 0)
    return fd


class _End:
    """What both ends do: map, check the header once, keep their own copy of it."""

    def __init__(
        self, fd: int, *, generation: int, machine: fence.Machine | None = None
    ) -> None:
        self._machine = machine or fence.machine()
        self._segment = _map(fd)
        self._fenced = self._machine.fenced()
        self._words = memoryview(self._segment)[:HEADER_BYTES].cast("Q")
        self._data = memoryview(self._segment)[HEADER_BYTES:]
        try:
            self._check_header(generation)
        except RingCorrupt:
            self.close()
            raise

    def _check_header(self, generation: int) -> None:
        magic, version, actual, capacity, checksum = self._words[:5]
        if (magic, version) != (_MAGIC, _VERSION):
            raise RingCorrupt("not a ring of this version")
        if actual != generation:
            raise RingCorrupt(f"generation {actual}, expected {generation}")
        if capacity != len(self._data) or capacity & (capacity - 1):
            raise RingCorrupt(f"capacity {capacity} in {len(self._data)} bytes")
        self.capacity_bytes = capacity
        self.has_checksums = bool(checksum)
        self._head = self._words[_HEAD]
        self._tail = self._words[_TAIL]
        self._check_span(self._head, self._tail)
        self._settle()

    def _check_span(self, head: int, tail: int) -> None:
        span = head - tail
        if not 0 <= span <= self.capacity_bytes or (head | tail) & 15 or head > _LIMIT:
            raise RingCorrupt(f"head {head}, tail {tail} of {self.capacity_bytes}")

    def _settle(self) -> None:
        """The peer's index moved: what it did before that must be visible here."""
        if not self._machine.strong and not self._machine.barrier():
            raise RingCorrupt("membarrier failed")

    def close(self) -> None:
        """Unmap. Views from `get` must have been advanced over."""
        self._words.release()
        self._data.release()
        self._segment.close()


class Producer(_End):
    """The end that puts records."""

    def __init__(
        self, fd: int, *, generation: int, machine: fence.Machine | None = None
    ) -> None:
        super().__init__(fd, generation=generation, machine=machine)
        self.max_record_bytes = self.capacity_bytes // 2 - _FRAME_BYTES
        self.full_events = 0
        self._rung = 0

    def put(self, record: bytes | memoryview) -> bool:
        """Publish one record. True: the consumer sleeps, ring its bell."""
        length = len(record)
        if length > self.max_record_bytes:
            raise RecordTooLarge(f"{length} bytes, at most {self.max_record_bytes}")
        size = (length + 31) & -16
        head = self._head
        offset = head & (self.capacity_bytes - 1)
        room = self.capacity_bytes - offset
        skipped = 0 if size <= room else room
        if head + skipped + size - self._tail > self.capacity_bytes:
            self._make_room(skipped + size)
        if skipped:
            _RECORD.pack_into(self._data, offset, _SKIP, 0, head)
            head += skipped
            offset = 0
        crc = zlib.crc32(record) if self.has_checksums else 0
        _RECORD.pack_into(self._data, offset, length, crc, head)
        offset += _FRAME_BYTES
        self._data[offset : offset + length] = record
        self._head = self._words[_HEAD] = head + size
        sleep = self._words[_SLEEP]
        if sleep & 1 and sleep != self._rung:
            # An unfenced consumer never changes the word: it needs every ring.
            self._rung = 0 if sleep == _UNFENCED else sleep
            return True
        return not self._fenced

    @property
    def used_bytes(self) -> int:
        """Bytes that the consumer has not freed yet."""
        self._look()
        return self._head - self._tail

    def _make_room(self, wanted_bytes: int) -> None:
        self._look()
        if self._head + wanted_bytes - self._tail > self.capacity_bytes:
            self.full_events += 1
            raise RingFull(f"{wanted_bytes} bytes do not fit now")

    def _look(self) -> None:
        tail = self._words[_TAIL]
        if tail == self._tail:
            return
        self._check_span(self._head, tail)
        if tail < self._tail:
            raise RingCorrupt(f"tail {tail} after {self._tail}")
        self._settle()
        self._tail = tail


class Consumer(_End):
    """The end that gets records, in order, each until `advance`."""

    def __init__(
        self, fd: int, *, generation: int, machine: fence.Machine | None = None
    ) -> None:
        self._view: memoryview | None = None
        super().__init__(fd, generation=generation, machine=machine)
        self._next = self._tail
        self._sleep = self._words[_SLEEP] % _LIMIT
        if not self._fenced:
            self._give_up_fences()

    def get(self) -> memoryview | None:
        """The oldest record, inside the ring and valid until `advance`, or None."""
        if self._view is not None:
            return self._view
        tail = self._tail
        if tail == self._head and not self._look():
            return None
        offset = tail & (self.capacity_bytes - 1)
        length, crc, position = _RECORD.unpack_from(self._data, offset)
        if length == _SKIP and position == tail:
            tail += self.capacity_bytes - offset
            offset = 0
            length, crc, position = _RECORD.unpack_from(self._data, 0)
        size = (length + 31) & -16
        if (
            position != tail
            or tail + size > self._head
            or offset + size > self.capacity_bytes
        ):
            raise RingCorrupt(f"record of {length} bytes at {position}, tail {tail}")
        offset += _FRAME_BYTES
        view = self._data[offset : offset + length]
        if self.has_checksums and zlib.crc32(view) != crc:
            view.release()
            raise RingCorrupt(f"checksum of the record at {position}")
        self._next = tail + size
        self._view = view
        return view

    def advance(self) -> None:
        """Free the record that `get` gave; its view is dead from here on."""
        if self._view is not None:
            self._view.release()
            self._view = None
        self._tail = self._words[_TAIL] = self._next

    def park(self) -> bool:
        """Announce sleep. True: the ring is empty, sleep until the bell."""
        if self._fenced:
            self._sleep = (self._sleep + 1) | 1
            self._words[_SLEEP] = self._sleep
            if not self._machine.barrier():
                self._give_up_fences()
        if self._words[_HEAD] == self._tail:
            return True
        self.unpark()
        return False

    def unpark(self) -> None:
        """Awake: no more bells until the next park."""
        if self._fenced and self._sleep & 1:
            self._sleep += 1
            self._words[_SLEEP] = self._sleep

    def close(self) -> None:
        if self._view is not None:
            self._view.release()
            self._view = None
        super().close()

    def _give_up_fences(self) -> None:
        self._fenced = False
        self._words[_SLEEP] = _UNFENCED

    def _look(self) -> bool:
        head = self._words[_HEAD]
        if head == self._head:
            return False
        self._check_span(head, self._tail)
        self._settle()
        self._head = head
        return True


def _map(fd: int) -> mmap.mmap:
    try:
        return memory.attach(fd, minimum_bytes=HEADER_BYTES + MIN_CAPACITY_BYTES)
    except memory.BadSegment as error:
        raise RingCorrupt(str(error)) from error
