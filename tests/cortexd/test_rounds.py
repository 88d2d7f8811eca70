"""Who asks for news gets a round that begins afterwards, and shares it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cortexd.rounds import Rounds


class Work:
    """Each round lasts until it is let go."""

    def __init__(self) -> None:
        self.num_begun = 0
        self.gate = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def __call__(self) -> None:
        self.num_begun += 1
        await self.gate.acquire()
        if self.error is not None:
            raise self.error


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def run(test: Callable[[Work], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(10):
            await test(Work())

    asyncio.run(within())


def test_who_asks_during_a_round_waits_for_the_next_one_with_all_others() -> None:
    async def test(work: Work) -> None:
        rounds = Rounds(work)
        first = asyncio.ensure_future(rounds.after_now())
        await settle()
        later = [asyncio.ensure_future(rounds.after_now()) for _ in range(5)]
        await settle()
        assert work.num_begun == 1

        work.gate.release()
        await first
        await settle()
        assert work.num_begun == 2
        assert not any(asking.done() for asking in later)

        work.gate.release()
        await asyncio.gather(*later)
        assert work.num_begun == 2

    run(test)


def test_a_round_that_failed_tells_those_who_asked_and_nobody_else() -> None:
    async def test(work: Work) -> None:
        rounds = Rounds(work)
        work.error = OSError("gone")
        work.gate.release()
        with pytest.raises(OSError, match="gone"):
            await rounds.after_now()

        work.error = None
        work.gate.release()
        await rounds.after_now()
        assert work.num_begun == 2

    run(test)


def test_who_gives_up_ends_no_round_of_others() -> None:
    async def test(work: Work) -> None:
        rounds = Rounds(work)
        asking = [asyncio.ensure_future(rounds.after_now()) for _ in range(2)]
        await settle()
        asking[0].cancel()
        await settle()
        work.gate.release()
        await asking[1]
        assert work.num_begun == 1

    run(test)


def test_rounds_keep_their_distance() -> None:
    async def test(work: Work) -> None:
        loop = asyncio.get_running_loop()
        rounds = Rounds(work, least_gap_s=0.1)
        began_s = loop.time()
        for _ in range(3):
            work.gate.release()
            await rounds.after_now()
        assert loop.time() - began_s >= 0.2

    run(test)


def test_nothing_runs_on_after_a_cancel() -> None:
    async def test(work: Work) -> None:
        rounds = Rounds(work)
        asking = [asyncio.ensure_future(rounds.after_now())]
        await settle()
        asking.append(asyncio.ensure_future(rounds.after_now()))
        await settle()
        rounds.cancel()
        ended = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(end) for end in ended] == [asyncio.CancelledError] * 2

    run(test)
