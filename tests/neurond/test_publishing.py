"""When followers are told the facts."""

from __future__ import annotations

import asyncio
from typing import Any

from neurond.publishing import Publisher
from tests.neurond.slotkit import running, until


class Node:
    """Facts that a test changes, and what followers were told."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {"running": 0, "time_s": 0.0}
        self.told: list[dict[str, Any]] = []
        self.publisher = Publisher(self._build, self.told.append)

    def _build(self) -> dict[str, Any]:
        self.facts["time_s"] += 1.0
        return dict(self.facts)


@running
async def test_changes_within_a_moment_are_one_document() -> None:
    node = Node()
    for number in range(10):
        node.facts["running"] = number
        node.publisher.soon()
    assert node.told == []
    await until(lambda: node.told)
    await asyncio.sleep(0)
    assert [told["running"] for told in node.told] == [9]


@running
async def test_at_most_twenty_documents_a_second_are_told() -> None:
    node = Node()
    loop = asyncio.get_running_loop()
    begin_s = loop.time()
    while len(node.told) < 4:
        node.publisher.soon()
        await asyncio.sleep(0)
    assert loop.time() - begin_s >= 4 * 0.05 - 0.01


@running
async def test_now_is_at_once_and_takes_what_was_due() -> None:
    node = Node()
    node.publisher.soon()
    node.publisher.now()
    assert len(node.told) == 1
    await asyncio.sleep(0.1)
    assert len(node.told) == 1


@running
async def test_figures_that_moved_are_told_once_a_second() -> None:
    node = Node()
    node.publisher.now()
    node.facts["running"] = 1
    node.publisher.tick(100.0)
    node.facts["running"] = 2
    node.publisher.tick(100.5)
    assert [told["running"] for told in node.told] == [0, 1]
    node.publisher.tick(101.1)
    assert [told["running"] for told in node.told] == [0, 1, 2]


@running
async def test_time_alone_is_no_news() -> None:
    node = Node()
    node.publisher.now()
    for second in range(100, 110):
        node.publisher.tick(float(second))
    assert len(node.told) == 1


@running
async def test_a_tick_leaves_what_is_due_to_its_timer() -> None:
    node = Node()
    node.publisher.soon()
    node.publisher.tick(100.0)
    assert node.told == []
    node.publisher.close()


@running
async def test_after_the_close_nothing_is_told() -> None:
    node = Node()
    node.publisher.soon()
    node.publisher.close()
    await asyncio.sleep(0.1)
    assert node.told == []
