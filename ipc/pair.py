"""The five descriptors of a ring pair: what a worker and a device share.

Made by the supervisor, which sends the same five to both sides and closes its own.
Nothing of a pair has a name; it vanishes with its last holder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import astuple, dataclass

from ipc.bell import create_bell
from ipc.ring import create_ring
from ipc.slabs import create_arena

CAPACITY_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class PairFds:
    """In the order in which they travel."""

    down_ring: int
    up_ring: int
    down_bell: int
    up_bell: int
    slabs: int

    def numbers(self) -> tuple[int, ...]:
        return astuple(self)

    def duplicate(self) -> PairFds:
        return PairFds(*map(os.dup, self.numbers()))

    def close(self) -> None:
        for fd in self.numbers():
            os.close(fd)


def create_pair(
    *, generation: int, capacity_bytes: int = CAPACITY_BYTES, sealed: bool = False
) -> PairFds:
    """A new pair. Raises OSError (ENOSPC: /dev/shm is full; EMFILE)."""
    made: list[int] = []
    try:
        for fd in _create(generation, capacity_bytes, sealed):
            made.append(fd)
    except BaseException:
        for fd in made:
            os.close(fd)
        raise
    return PairFds(*made)


def _create(generation: int, capacity_bytes: int, sealed: bool) -> Iterator[int]:
    yield create_ring(capacity_bytes, generation=generation, sealed=sealed)
    yield create_ring(capacity_bytes, generation=generation, sealed=sealed)
    yield create_bell()
    yield create_bell()
    yield create_arena(sealed=sealed)
