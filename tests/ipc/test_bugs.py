"""Exceptions that nobody expected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ipc.bugs import run_until, where

Task = Callable[[], Coroutine[Any, Any, None]]


async def go_on() -> None:
    await asyncio.sleep(3600)


async def fail() -> None:
    await asyncio.sleep(0)
    raise LookupError("no such handle")


def live_by(*coroutines: Task, stop: bool) -> None:
    """Raises what ended it."""

    async def live() -> None:
        wanted = asyncio.Event()
        tasks = [asyncio.ensure_future(coroutine()) for coroutine in coroutines]
        if stop:
            wanted.set()
        await run_until(wanted, tasks)
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()

    asyncio.run(asyncio.wait_for(live(), 5.0))


def test_an_order_to_stop_leaves_the_tasks_to_their_owner() -> None:
    live_by(go_on, go_on, stop=True)


def test_a_task_that_fails_is_the_end_of_who_lives_by_it() -> None:
    with pytest.raises(LookupError) as caught:
        live_by(go_on, fail, stop=False)
    assert where(caught.value).endswith(" fail")


def test_what_was_never_raised_has_no_place() -> None:
    assert where(LookupError()) == ""
