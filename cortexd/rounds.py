"""Work that many want done at once: whoever asks gets a round that begins afterwards.

Gateway workers and the fleet process. What is wanted is news, so a round that runs
already may have looked too early; all who ask meanwhile share the next one.

    ask 1 ─▶ round 1 ────────┐
    ask 2, 3, 4 wait for it  └─▶ round 2, for all three

Invariants: one round at a time, at least `least_gap_s` from one's begin to the next
one's; nobody waits for more than two of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Rounds:
    """`work` must have a deadline of its own."""

    def __init__(
        self, work: Callable[[], Awaitable[None]], *, least_gap_s: float = 0.0
    ) -> None:
        self._work = work
        self._least_gap_s = least_gap_s
        self._next_s = 0.0
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def after_now(self) -> None:
        """Return when a round that began after this call has ended.

        Raises what the work raises.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._round(self._running))
        await asyncio.shield(self._next)

    def cancel(self) -> None:
        for task in (self._running, self._next):
            if task is not None:
                task.cancel()

    async def _round(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])  # how it ended is told to those who asked
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._next_s - loop.time())
        self._next_s = loop.time() + self._least_gap_s
        self._running, self._next = self._next, None
        await self._work()
