"""The memory of a device that died: waiting until it is really back (S35).

Supervisor. A driver frees what a process held some time after the process is gone; a
reload that comes sooner finds no room. So a new life waits until as much is free as its
models need, or nothing has changed for a second; half a minute at most.

    cuda   NVML's readings
    cpu    the kernel has freed everything before the pidfd speaks
    fake   `LateMemory`: bytes come back `free_after_ms` late, an option of the model

Invariant: the wait ends, whatever a reading says; no reading at all ends it at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

STILL_S = 1.0
LONGEST_S = 30.0
_POLL_S = 0.02


async def memory_back(
    free_bytes: Callable[[], int | None],
    needed_bytes: int,
    *,
    still_s: float = STILL_S,
    longest_s: float = LONGEST_S,
) -> None:
    """`free_bytes`: None = it can't be told."""
    end_s = time.monotonic() + longest_s
    last, since_s = free_bytes(), time.monotonic()
    while last is not None and last < needed_bytes:
        now_s = time.monotonic()
        if now_s >= end_s or now_s - since_s >= still_s:
            return
        await asyncio.sleep(_POLL_S)
        now = free_bytes()
        if now != last:
            last, since_s = now, time.monotonic()


class LateMemory:
    """What a fake device's death leaves behind for a while."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: list[tuple[float, int]] = []

    def lose(self, size_bytes: int, late_s: float) -> None:
        """So many bytes come back so much later."""
        if late_s > 0:
            self._held.append((self._clock() + late_s, size_bytes))

    def held_bytes(self) -> int:
        now_s = self._clock()
        self._held = [item for item in self._held if item[0] > now_s]
        return sum(size_bytes for _, size_bytes in self._held)
