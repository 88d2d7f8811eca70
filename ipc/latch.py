"""A record in shared memory, replaced whole by one writer while another process reads.

A sequence lock over two slots: the writer fills the slot that is not current and then
moves the sequence on, so the last record stays readable while the next is written, also
when the writer is stopped or killed in the middle.

    0    u64 sequence          s = number of records written; the current one is in
                               slot s mod 2; 0 = none yet
    64   slot 0                u64 sequence · u32 length · u32 crc32 · payload
    …    slot 1                the same

The checksum covers sequence, length and payload. It finds a slot that was rewritten
while it was copied, on machines that reorder stores too, and memory that was scribbled
on.

Invariant: `read` gives a record that was written whole, or None.
"""

from __future__ import annotations

import struct
import zlib

_MASK = (1 << 64) - 1
_CHECKED = struct.Struct("<QI")
_HEADER = struct.Struct("<QII")
_LINE_BYTES = 64
_TRIES = 64
"""The writer moves on twice during one copy at worst; it can't do that for ever."""


class Latch:
    """One record's place in a mapping; writer and reader each make their own object."""

    def __init__(self, memory: memoryview, *, capacity_bytes: int) -> None:
        self._memory = memory
        self._capacity_bytes = capacity_bytes
        self._sequence = memory[:8].cast("Q")

    @staticmethod
    def size_bytes(capacity_bytes: int) -> int:
        """Room for a record of up to `capacity_bytes`, a multiple of 64."""
        return _LINE_BYTES + 2 * _slot_bytes(capacity_bytes)

    def write(self, payload: bytes) -> None:
        sequence = (self._sequence[0] + 1) & _MASK
        size = len(payload)
        if size > self._capacity_bytes:
            raise ValueError(f"{size} bytes, room for {self._capacity_bytes}")
        header = _HEADER.pack(sequence, size, _checksum(sequence, payload))
        start = self._slot(sequence)
        self._memory[start : start + _HEADER.size + size] = header + payload
        self._sequence[0] = sequence

    def read(self) -> bytes | None:
        """The current record; None when there is none, or only damage."""
        for _ in range(_TRIES):
            sequence = self._sequence[0]
            if sequence == 0:
                return None
            payload = self._copy(sequence)
            if payload is not None:
                return payload
        return None

    def _copy(self, sequence: int) -> bytes | None:
        start = self._slot(sequence)
        actual, size, checksum = _HEADER.unpack_from(self._memory, start)
        if actual != sequence or size > self._capacity_bytes:
            return None
        body = start + _HEADER.size
        payload = bytes(self._memory[body : body + size])
        return payload if checksum == _checksum(sequence, payload) else None

    def _slot(self, sequence: int) -> int:
        return _LINE_BYTES + (sequence & 1) * _slot_bytes(self._capacity_bytes)

    def release(self) -> None:
        """Let go of the mapping, so that it can be closed."""
        self._sequence.release()
        self._memory.release()


def _slot_bytes(capacity_bytes: int) -> int:
    whole = _HEADER.size + capacity_bytes
    return -(-whole // _LINE_BYTES) * _LINE_BYTES


def _checksum(sequence: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_CHECKED.pack(sequence, len(payload))))
