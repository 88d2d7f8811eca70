"""An arena of fixed slabs beside the down ring, for records too large for a ring.

One per (worker, device) pair, made and passed like the rings; it dies with them. Only
the worker allocates. A large record is cut into slabs, and a small envelope goes
through the ring in its place; the device copies the bytes out and answers SlabsFree.

    arena       32 slabs of 128 KiB, no header: all state is the worker's own
    envelope    u8 0xC1 | 3 bytes 0 | u32 length | u32 slab number, …

0xC1 begins no msgpack value, so an envelope is never mistaken for a message. Memory
order is the ring's: slabs are written before the envelope is published, and read before
their release is.

Invariant: neither side believes a number of the other: a slab that does not exist or
is not lent, or a length that does not fit the slabs, is RingCorrupt.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence

from ipc import memory
from ipc.ring import RecordTooLarge, RingCorrupt, RingFull

NUM_SLABS = 32
SLAB_BYTES = 128 << 10
ARENA_BYTES = NUM_SLABS * SLAB_BYTES

_MARK = 0xC1
_ENVELOPE = struct.Struct("=B3xI")
_NUMBER = struct.Struct("=I")


def create_arena(*, sealed: bool = False) -> int:
    """The descriptor of an arena with all slabs free."""
    return memory.create(ARENA_BYTES, sealed=sealed)


def is_envelope(record: bytes) -> bool:
    return record[:1] == b"\xc1"


def pack_envelope(length: int, slabs: Sequence[int]) -> bytes:
    return _ENVELOPE.pack(_MARK, length) + b"".join(map(_NUMBER.pack, slabs))


def unpack_envelope(record: bytes) -> tuple[int, tuple[int, ...]]:
    """Length and slabs. Raises RingCorrupt."""
    if len(record) < _ENVELOPE.size or len(record) % _NUMBER.size:
        raise RingCorrupt(f"envelope of {len(record)} bytes")
    _, length = _ENVELOPE.unpack_from(record)
    numbers = _NUMBER.iter_unpack(record[_ENVELOPE.size :])
    return length, tuple(number for (number,) in numbers)


class SlabWriter:
    """The worker's side: allocates, writes, takes back."""

    def __init__(self, fd: int) -> None:
        self._arena = _map(fd)
        self._free = list(range(NUM_SLABS))
        self._lent: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def write(self, record: bytes) -> tuple[int, ...]:
        """Copy a record in. Raises RingFull, RecordTooLarge."""
        count = -(-len(record) // SLAB_BYTES)
        if count > NUM_SLABS:
            raise RecordTooLarge(f"{len(record)} bytes, at most {ARENA_BYTES}")
        if count > len(self._free):
            raise RingFull(f"{count} slabs wanted, {len(self._free)} free")
        slabs = tuple(self._free.pop() for _ in range(count))
        self._lent.update(slabs)
        for index, slab in enumerate(slabs):
            part = record[index * SLAB_BYTES : (index + 1) * SLAB_BYTES]
            start = slab * SLAB_BYTES
            self._arena[start : start + len(part)] = part
        return slabs

    def free(self, slabs: Sequence[int]) -> None:
        """The device has read them. Raises RingCorrupt for one that is not lent."""
        for slab in slabs:
            if slab not in self._lent:
                raise RingCorrupt(f"slab {slab} is not lent")
            self._lent.remove(slab)
            self._free.append(slab)

    def close(self) -> None:
        self._arena.close()


class SlabReader:
    """The device's side: copies records out; `unreleased` are owed to the worker."""

    def __init__(self, fd: int) -> None:
        self._arena = _map(fd)
        self.unreleased: list[int] = []

    def read(self, length: int, slabs: Sequence[int]) -> bytes:
        """The record that lies in these slabs. Raises RingCorrupt."""
        fits = (len(slabs) - 1) * SLAB_BYTES < length <= len(slabs) * SLAB_BYTES
        if not fits or not all(slab < NUM_SLABS for slab in slabs):
            raise RingCorrupt(f"{length} bytes in slabs {slabs}")
        owed = [*self.unreleased, *slabs]
        if len(set(owed)) != len(owed):
            raise RingCorrupt(f"slabs {slabs} before {self.unreleased} were released")
        self.unreleased = owed
        starts = [slab * SLAB_BYTES for slab in slabs]
        parts = [self._arena[start : start + SLAB_BYTES] for start in starts]
        return b"".join(parts)[:length]

    def close(self) -> None:
        self._arena.close()


def _map(fd: int) -> mmap.mmap:
    try:
        return memory.attach(fd, minimum_bytes=ARENA_BYTES)
    except memory.BadSegment as error:
        raise RingCorrupt(str(error)) from error
