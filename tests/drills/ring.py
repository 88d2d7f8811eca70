"""Crash drill of the ring: SIGKILL one end again and again, and count what went wrong.

    python -m tests.drills.ring --kills 1000 --seed 1

Half of the victims die at a random moment, half at a random bytecode inside ring.py, so
every point between "room found" and "head published" is met. Afterwards the survivor
must have, in order and byte for byte, exactly what was published, and an heir must be
able to go on in the same memory.

    corrupt   a record that nobody sent, or RingCorrupt
    lost      a number that was published and never seen
    hung      5 s without progress although the other end lives
    repeated  the record that a killed consumer had in hand, seen again by its heir: the
              contract is at-least-once, so it is no fault, but it is at most one a kill
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import select
import sys
import time
from dataclasses import astuple, dataclass
from typing import Any

from ipc import ring
from ipc.bell import Bell, create_bell
from ipc.ring import Consumer, Producer, RingCorrupt, RingFull, create_ring
from tests.drills.victim import Victim

CAPACITY_BYTES = 1 << 17
PATIENCE_S = 5.0
_GENERATION = 1
_SIZES = (1, 17, 100, 900, 4000, 30_000)
_POOL = [random.Random(n).randbytes(random.Random(n).choice(_SIZES)) for n in range(64)]


@dataclass
class Counts:
    """What a drill saw; `bad` must be 0."""

    kills: int = 0
    records: int = 0
    repeated: int = 0
    corrupt: int = 0
    lost: int = 0
    hung: int = 0

    @property
    def bad(self) -> int:
        return self.corrupt + self.lost + self.hung

    def __add__(self, other: Counts) -> Counts:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Counts(*(mine + its for mine, its in pairs))

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.records} records, {self.repeated} repeated: "
            f"{self.corrupt} corrupt, {self.lost} lost, {self.hung} hung"
        )


def record(number: int) -> bytes:
    return number.to_bytes(8, "little") + _POOL[number % len(_POOL)]


class Reader:
    """Checks that the numbers come without a gap and the bytes are the sent ones."""

    def __init__(self, fd: int, counts: Counts) -> None:
        self._consumer = Consumer(os.dup(fd), generation=_GENERATION)
        self.counts = counts
        self.expected = 0
        self.first: int | None = None

    def read_all(self) -> None:
        while self._read():
            pass

    def park(self) -> bool:
        return self._consumer.park()

    def unpark(self) -> None:
        self._consumer.unpark()

    def close(self) -> None:
        self._consumer.close()

    def start_at_first(self) -> None:
        """For an heir: whatever number comes first is right."""
        self.expected = -1

    def _read(self) -> bool:
        try:
            view = self._consumer.get()
        except RingCorrupt:
            self.counts.corrupt += 1
            return False
        if view is None:
            return False
        self._check(bytes(view))
        self._consumer.advance()
        return True

    def _check(self, got: bytes) -> None:
        number = int.from_bytes(got[:8], "little")
        if self.expected < 0:
            self.expected = number
        self.first = number if self.first is None else self.first
        self.counts.corrupt += number < self.expected or got != record(number)
        self.counts.lost += max(0, number - self.expected)
        self.counts.records += 1
        self.expected = number + 1


class Round:
    """One ring, one kill."""

    def __init__(self, rng: random.Random) -> None:
        self.counts = Counts(kills=1)
        self.fd = create_ring(CAPACITY_BYTES, generation=_GENERATION, checksum=True)
        self.bell = Bell(create_bell())
        by_itself = rng.random() < 0.5
        self.die_after_bytecodes = rng.randrange(1, 6000) if by_itself else 0
        self._stop_s = time.monotonic() + (
            PATIENCE_S if by_itself else rng.uniform(0.0005, 0.02)
        )

    def goes_on(self, victim: Victim) -> bool:
        return victim.alive and time.monotonic() < self._stop_s

    def close(self) -> None:
        self.bell.close()
        os.close(self.fd)


def kill_a_producer(rng: random.Random) -> Counts:
    """The survivor reads a gapless prefix; an heir goes on behind it."""
    game = Round(rng)
    victim = Victim(
        lambda: _produce(game.fd, game.bell),
        module=ring,
        die_after_bytecodes=game.die_after_bytecodes,
    )
    reader = Reader(game.fd, game.counts)
    while game.goes_on(victim):
        reader.read_all()
        if reader.park():
            _sleep(game, victim)
        reader.unpark()
    victim.kill()
    reader.read_all()
    _go_on_after(game.fd, reader)
    reader.close()
    game.close()
    return game.counts


def _produce(fd: int, bell: Bell) -> None:
    producer = Producer(fd, generation=_GENERATION)
    number = 0
    end_s = time.monotonic() + 4 * PATIENCE_S  # never outlive a killed drill
    while time.monotonic() < end_s:
        try:
            if producer.put(record(number)):
                bell.ring()
            number += 1
        except RingFull:
            os.sched_yield()


def _sleep(game: Round, victim: Victim) -> None:
    wakers: list[Any] = [game.bell, victim.pidfd]
    woken = select.select(wakers, [], [], PATIENCE_S)[0]
    game.bell.drain()
    game.counts.hung += not woken


def _go_on_after(fd: int, reader: Reader) -> None:
    """An heir of the killed producer: what it left half-written must not show."""
    heir = Producer(os.dup(fd), generation=_GENERATION)
    end = reader.expected + 10
    for number in range(reader.expected, end):
        heir.put(record(number))
        reader.read_all()
    reader.counts.lost += end - reader.expected
    heir.close()


def kill_a_consumer(rng: random.Random) -> Counts:
    """An heir finds all that was published and not processed, and goes on."""
    game = Round(rng)
    with mmap.mmap(-1, mmap.PAGESIZE) as page, memoryview(page).cast("Q") as words:
        victim = Victim(
            lambda: _consume(game.fd, game.bell, words),
            module=ring,
            die_after_bytecodes=game.die_after_bytecodes,
        )
        producer = Producer(os.dup(game.fd), generation=_GENERATION)
        sent = _feed(game, victim, producer)
        victim.kill()
        processed = words[0]
        game.counts.corrupt += words[1]
    heir = Reader(game.fd, game.counts)
    heir.start_at_first()
    heir.read_all()
    if heir.first is None:
        game.counts.lost += sent - processed
    else:
        game.counts.lost += max(0, heir.first - processed) + sent - heir.expected
        game.counts.repeated += max(0, processed - heir.first)
    game.counts.corrupt += game.counts.repeated > 1
    game.counts.records += processed
    producer.close()
    heir.close()
    game.close()
    return game.counts


def _feed(game: Round, victim: Victim, producer: Producer) -> int:
    """Send until the round ends; the number of records published."""
    sent = 0
    moved_s = time.monotonic()
    while game.goes_on(victim):
        try:
            if producer.put(record(sent)):
                game.bell.ring()
            sent += 1
            moved_s = time.monotonic()
        except RingFull:
            os.sched_yield()
    game.counts.hung += time.monotonic() - moved_s > PATIENCE_S / 2
    return sent


def _consume(fd: int, bell: Bell, words: memoryview) -> None:
    """Words: number of records processed, 1 = something was corrupt."""
    consumer = Consumer(fd, generation=_GENERATION)
    end_s = time.monotonic() + 4 * PATIENCE_S
    while time.monotonic() < end_s:
        try:
            view = consumer.get()
        except RingCorrupt:
            words[1] = 1
            return
        if view is None:
            if consumer.park():
                select.select([bell], [], [], PATIENCE_S)
                bell.drain()
            consumer.unpark()
            continue
        words[1] |= bytes(view) != record(words[0])
        words[0] += 1
        consumer.advance()


def run(kills: int, seed: int) -> dict[str, Counts]:
    """`kills` of each side."""
    rng = random.Random(seed)
    totals = {"producer": Counts(), "consumer": Counts()}
    for _ in range(kills):
        totals["producer"] += kill_a_producer(rng)
        totals["consumer"] += kill_a_consumer(rng)
    return totals


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills.ring")
    parser.add_argument("--kills", type=int, default=1000, help="of each side")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    totals = run(options.kills, options.seed)
    for side, counts in totals.items():
        print(f"{side}: {counts}")
    return 1 if any(counts.bad for counts in totals.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
