"""Ring pairs that are queues: bounded, in order, with a delay drawn for each record.

What a device has put into a ring outlives it, as in shared memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Generic, TypeVar

from ipc.channel import ChannelBroken
from ipc.messages import RingDown, RingUp
from ipc.pair import PairFds
from ipc.ring import RingFull

_LONGEST_DELAY_S = 0.004
T = TypeVar("T")


class Way(Generic[T]):
    """One direction. `on_due` is called when a record can be read."""

    def __init__(self, loop: asyncio.AbstractEventLoop, chance: Random, capacity: int):
        self._loop = loop
        self._chance = chance
        self._capacity = capacity
        self._records: deque[tuple[float, T]] = deque()
        self._last_s = 0.0
        self.on_due: Callable[[], None] = lambda: None

    def put(self, record: T) -> bool:
        """False: it is full."""
        if len(self._records) >= self._capacity:
            return False
        delay_s = self._chance.random() * _LONGEST_DELAY_S
        self._last_s = max(self._last_s, self._loop.time() + delay_s)
        self._records.append((self._last_s, record))
        self._loop.call_at(self._last_s, self._due)
        return True

    def _due(self) -> None:
        self.on_due()

    def get(self) -> T | None:
        if self._records and self._records[0][0] <= self._loop.time() + 1e-9:
            return self._records.popleft()[1]
        return None

    @property
    def has_news(self) -> bool:
        return bool(self._records) and self._records[0][0] <= self._loop.time() + 1e-9


class Pair:
    """`numbers` and `close` as those of `PairFds`: there is nothing to close."""

    def __init__(
        self, number: int, loop: asyncio.AbstractEventLoop, chance: Random, room: int
    ) -> None:
        self.number = number
        self.down: Way[RingDown] = Way(loop, chance, room)
        self.up: Way[RingUp] = Way(loop, chance, 4 * room)
        self.breaks_at = 0
        """The record up with this number is broken, 0 = none."""
        self.num_read = 0

    def numbers(self) -> tuple[int, ...]:
        return (self.number,) * 5

    def close(self) -> None:
        pass


class _Bell:
    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number


class DeviceSide:
    """As `ipc.channel.DeviceEnd`."""

    def __init__(self, pair: Pair, wake: Callable[[], None]) -> None:
        self._pair = pair
        self._open = True
        self.bell = _Bell(pair.number)
        pair.down.on_due = wake

    def receive(self, limit: int = 64) -> list[RingDown]:
        messages: list[RingDown] = []
        while len(messages) < limit and (got := self._pair.down.get()) is not None:
            messages.append(got)
        return messages

    def send(self, message: RingUp) -> bool:
        return self._pair.up.put(message)

    def park(self) -> bool:
        return not self._pair.down.has_news

    def close(self) -> None:
        self._pair.down.on_due = lambda: None


class WorkerSide:
    """As `ipc.channel.WorkerEnd`."""

    def __init__(
        self,
        pair: Pair,
        on_message: Callable[[RingUp], None],
        on_broken: Callable[[Exception], None],
    ) -> None:
        self._pair = pair
        self._on_message = on_message
        self._on_broken = on_broken
        self._open = True

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._pair.up.on_due = self._read
        loop.call_soon(self._read)

    def submit(self, message: RingDown) -> None:
        if not self._open:
            raise ChannelBroken("the channel is closed")
        if not self._pair.down.put(message):
            raise RingFull

    def close(self) -> None:
        self._open = False
        self._pair.up.on_due = lambda: None

    def _read(self) -> None:
        while self._open and (message := self._pair.up.get()) is not None:
            self._pair.num_read += 1
            if self._pair.num_read == self._pair.breaks_at:
                self.close()
                self._on_broken(ChannelBroken("a record is damaged"))
                return
            self._on_message(message)


def pair_of(pairs: dict[int, Pair], fds: PairFds | Pair) -> Pair:
    """The pair that these descriptors stand for."""
    return pairs[fds.numbers()[0]]
