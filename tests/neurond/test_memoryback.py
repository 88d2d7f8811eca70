"""Waiting for a dead device's memory; times are short, the rules are the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from neurond.memoryback import LateMemory, memory_back
from tests.neurond.slotkit import running


def readings(*values: int | None) -> Callable[[], int | None]:
    """One after the other; the last one stays."""
    left: Iterator[int | None] = iter(values)
    last = values[-1]
    return lambda: next(left, last)


async def waited_s(free_bytes: Callable[[], int | None], needed: int) -> float:
    started_s = time.monotonic()
    await memory_back(free_bytes, needed, still_s=0.15, longest_s=0.4)
    return time.monotonic() - started_s


@running
async def test_s35_as_much_as_the_reload_needs_ends_the_wait() -> None:
    assert await waited_s(readings(100), 100) < 0.02
    assert 0.02 <= await waited_s(readings(10, 50, 100), 100) < 0.15


@running
async def test_s35_what_has_not_changed_for_a_while_won_t_come() -> None:
    took_s = await waited_s(readings(10), 100)
    assert 0.15 <= took_s < 0.35


@running
async def test_s35_the_wait_ends_whatever_is_read() -> None:
    numbers = iter(range(10**6))
    took_s = await waited_s(lambda: next(numbers), 10**7)
    assert 0.4 <= took_s < 0.8


@running
async def test_who_can_t_tell_is_not_waited_for() -> None:
    assert await waited_s(readings(None), 100) < 0.02
    assert await waited_s(readings(10, None), 100) < 0.1


def test_a_fake_devices_bytes_come_back_when_its_options_say() -> None:
    now_s = [10.0]
    late = LateMemory(lambda: now_s[0])
    late.lose(5, 0.0)
    late.lose(7, 1.0)
    late.lose(11, 2.0)
    assert late.held_bytes() == 18
    now_s[0] = 11.0
    assert late.held_bytes() == 11
    now_s[0] = 12.0
    assert late.held_bytes() == 0
