"""Lines of several processes above one bar."""

from __future__ import annotations

import io
import os
import re

from cortexd.ctl.run.console import Console
from cortexd.ctl.screen import Screen


def _console(**abilities: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(out, Screen(**abilities)), out


def test_lines_of_our_journals_pass_as_they_are() -> None:
    console, out = _console()

    console.log("neurond", "12:00:01 neurond: device cpu-0  ready\n")

    assert out.getvalue() == "12:00:01 neurond: device cpu-0  ready\n"


def test_other_lines_get_the_time_and_the_process() -> None:
    console, out = _console()

    console.log("neurond", "Traceback (most recent call last):")
    console.log("neurond", "   ")

    text = out.getvalue()
    assert re.fullmatch(r"\d\d:\d\d:\d\d neurond  Traceback .*\n", text)


def test_errors_are_coloured_on_a_terminal_only() -> None:
    console, out = _console(colour=True)

    console.log("cortexd", "12:00:01 cortexd  error: no such file")

    assert out.getvalue().startswith("\x1b[31m")


def test_a_line_never_lands_in_the_bar() -> None:
    console, out = _console(terminal=True)

    console.progress({"id": "tiny", "stage": "weights", "percent": 40})
    console.plain("a line")
    console.progress({"id": "tiny", "stage": "weights", "percent": 40})
    console.progress(None)

    before, after = out.getvalue().split("a line\n")
    assert before.endswith("\r\x1b[2K")
    assert "40%" in after
    assert after.endswith("\r\x1b[2K")


def test_without_a_terminal_progress_is_lines_of_the_same_form() -> None:
    console, out = _console()

    console.progress({"id": "tiny", "stage": "weights", "percent": 40})

    assert re.fullmatch(r"\d\d:\d\d:\d\d cortex  tiny .* 40%.*\n", out.getvalue())


def test_lines_are_lost_when_nobody_reads_them() -> None:
    with open("/dev/full", "w") as full:
        console = Console(full, Screen())

        console.say("ready")

        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
