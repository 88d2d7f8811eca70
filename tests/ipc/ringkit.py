"""Both ends of a ring in one process, and its memory for a peer that cheats."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ipc import fence, memory
from ipc.ring import HEADER_BYTES, Consumer, Producer, create_ring

MAGIC, VERSION, GENERATION, CAPACITY, HEAD, TAIL, SLEEP = 0, 1, 2, 3, 16, 32, 33


@dataclass
class Ends:
    """One ring; `raw` is what a cheating peer could write to."""

    fd: int
    producer: Producer
    consumer: Consumer
    raw: mmap.mmap

    def word(self, index: int) -> int:
        return int(struct.unpack_from("=Q", self.raw, index * 8)[0])

    def set_word(self, index: int, value: int) -> None:
        struct.pack_into("=Q", self.raw, index * 8, value)

    def set_record(self, offset: int, length: int, crc: int, position: int) -> None:
        struct.pack_into("=IIQ", self.raw, HEADER_BYTES + offset, length, crc, position)

    def take(self) -> bytes | None:
        """The oldest record, consumed."""
        view = self.consumer.get()
        if view is None:
            return None
        record = bytes(view)
        self.consumer.advance()
        return record

    def take_all(self) -> list[bytes]:
        return list(iter(self.take, None))


@contextmanager
def ring(
    capacity_bytes: int = 4096,
    *,
    checksum: bool = True,
    producer_on: fence.Machine | None = None,
    consumer_on: fence.Machine | None = None,
) -> Iterator[Ends]:
    fd = create_ring(capacity_bytes, generation=7, checksum=checksum)
    raw = memory.attach(os.dup(fd), minimum_bytes=HEADER_BYTES)
    producer = Producer(os.dup(fd), generation=7, machine=producer_on)
    consumer = Consumer(os.dup(fd), generation=7, machine=consumer_on)
    try:
        yield Ends(fd, producer, consumer, raw)
    finally:
        producer.close()
        consumer.close()
        raw.close()
        os.close(fd)


class Barriers:
    """A machine whose barriers are counted, may fail, and may let a peer run first."""

    def __init__(self) -> None:
        self.calls = 0
        self.works = True
        self.before: Callable[[], object] = lambda: None

    def barrier(self) -> bool:
        self.calls += 1
        self.before()
        return self.works

    def machine(self, *, strong: bool) -> fence.Machine:
        return fence.Machine(strong=strong, barrier=self.barrier)
