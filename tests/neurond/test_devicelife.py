"""A life's deadlines, read from pages that the test writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import cast

import pytest

from ipc.status import Phase, StatusReader, StatusWriter, create_page
from neurond.devicelife import Deadlines, Life, Senses
from neurond.deviceprocess import DeviceProcess


class Shown:
    """A process that only shows its page."""

    def __init__(self) -> None:
        self.now_s = 100.0
        fd = create_page()
        self.writer = StatusWriter(os.dup(fd), clock=lambda: self.now_s)
        self._reader = StatusReader(fd)
        os.close(fd)
        self.view = self._reader.read
        process = cast(DeviceProcess, self)
        self.life = Life(process, Deadlines(9.0, 9.0), Senses(lambda: self.now_s))
        self.life.serves()

    def close(self) -> None:
        self.writer.close()
        self._reader.close()

    def overdue(self) -> str:
        """At the second tick in a row."""
        self.life.overdue(late=False)
        return self.life.overdue(late=False)


@pytest.fixture
def shown() -> Iterator[Shown]:
    found = Shown()
    yield found
    found.close()


def test_s13_a_device_that_stands_still_between_two_steps_is_overdue(
    shown: Shown,
) -> None:
    shown.writer.arm(Phase.DECODE, 30.0, [7])
    shown.writer.idle()
    shown.now_s += 9.0
    assert not shown.overdue()
    shown.now_s += 2.0
    assert shown.overdue()
    assert shown.view().requests == ()


def test_an_idle_device_that_beats_is_not_overdue(shown: Shown) -> None:
    for _ in range(5):
        shown.now_s += 9.0
        shown.writer.idle()
        assert not shown.overdue()


@pytest.mark.parametrize("what", ["emitted_tokens_total", "requests_finished_total"])
def test_a_life_is_productive_by_a_token_or_an_answer_without_any(
    shown: Shown, what: str
) -> None:
    assert not shown.life.is_productive()
    shown.writer.add(what)
    assert shown.life.is_productive()
    shown.life.is_wrong = True
    assert not shown.life.is_productive()
