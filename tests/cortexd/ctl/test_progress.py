"""Progress is a bar on a terminal and a line per stage elsewhere."""

from __future__ import annotations

import io

import pytest

from cortexd.ctl.progress import Progress, bar, describe
from cortexd.ctl.screen import Screen

TERMINAL = Screen(width=80, terminal=True)


class _Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("percent", "drawn"),
    [(0, "...."), (50, "##.."), (99.9, "###."), (100, "####"), (150, "####")],
)
def test_a_bar_is_full_at_a_hundred_only(percent: float, drawn: str) -> None:
    assert bar(percent, width=4, unicode=False) == drawn


def test_a_load_shows_name_percent_stage_and_time_left() -> None:
    facts = {"id": "tiny", "stage": "weights", "percent": 42.7, "eta_s": 4}

    text = describe(facts, 3.0, Screen(unicode=False))

    assert text == "tiny  ##########..............  42%  weights  3s, 4s left"


def test_without_percent_stage_and_elapsed_time_are_shown() -> None:
    facts = {"id": "tiny", "status": "loading", "reason": "queued", "percent": None}

    assert describe(facts, 61.0, Screen()) == "tiny  loading  queued  1m01s"


def test_a_long_name_gives_way() -> None:
    facts = {"id": "x" * 200, "stage": "weights", "percent": 42.0, "eta_s": 4}

    assert len(describe(facts, 3.0, Screen())) <= 80


def test_a_terminal_is_redrawn_in_place_and_cleared() -> None:
    out = io.StringIO()
    progress = Progress(out, TERMINAL, _Clock(), print)

    progress.show({"id": "tiny", "stage": "weights", "percent": 10})
    progress.show({"id": "tiny", "stage": "weights", "percent": 20})
    progress.clear()

    assert "\n" not in out.getvalue()
    assert "20%" in out.getvalue()
    assert out.getvalue().endswith("\r\x1b[2K")


def test_elsewhere_a_line_comes_per_stage_and_quarter() -> None:
    lines: list[str] = []
    progress = Progress(io.StringIO(), Screen(), _Clock(), lines.append)

    for percent in range(100):
        stage = "convert" if percent < 30 else "weights"
        progress.show({"id": "tiny", "stage": stage, "percent": percent})

    assert [line.split("%")[0][-3:] for line in lines[1:]] == [
        " 25",
        " 30",
        " 50",
        " 75",
    ]


def test_silence_is_said() -> None:
    out, clock = io.StringIO(), _Clock()
    progress = Progress(out, TERMINAL, clock, print)
    facts = {"id": "x" * 60, "stage": "weights", "percent": 10, "eta_s": 100}

    progress.show(facts)
    clock.now_s += 12
    progress.show(facts)

    last = out.getvalue().rpartition("\x1b[2K")[2]
    assert last.endswith("12s, no progress for 12s")
    assert "left" not in last
