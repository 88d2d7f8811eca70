"""How often the journal hears of prompts."""

from __future__ import annotations

from neurond.frontend.prompts import Told


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_subject_is_told_once_in_a_while() -> None:
    clock = Clock()
    told = Told(clock)
    assert told.is_due("a")
    assert told.is_due("b")
    assert not told.is_due("a")
    clock.now_s = 601.0
    assert told.is_due("a")


def test_many_subjects_at_once_are_ten_lines_and_more_later() -> None:
    clock = Clock()
    told = Told(clock)
    assert sum(told.is_due(number) for number in range(5000)) == 10
    clock.now_s = 11.0
    assert told.is_due(4999)
    assert not told.is_due(0)
