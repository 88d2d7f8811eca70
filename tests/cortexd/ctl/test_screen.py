"""The terminal's abilities are found, and state is a word with a sign."""

from __future__ import annotations

import io
import os
import pty

import pytest

from cortexd.ctl.screen import Screen, screen_for, tone_of


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def _terminal(encoding: str = "utf-8") -> _Terminal:
    return _Terminal(io.BytesIO(), encoding=encoding)


def test_a_pipe_gets_80_columns_and_no_colour() -> None:
    screen = screen_for(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), {})

    assert screen == Screen(width=80, colour=False, unicode=True, terminal=False)


def test_a_terminal_is_measured() -> None:
    leader, follower = pty.openpty()
    os.close(leader)
    with open(follower, "w", encoding="utf-8") as stream:
        assert screen_for(stream, {}).width >= 40


@pytest.mark.parametrize(
    ("environ", "choice", "colour"),
    [
        ({}, "auto", True),
        ({"NO_COLOR": "1"}, "auto", False),
        ({"TERM": "dumb"}, "auto", False),
        ({"NO_COLOR": "1"}, "always", True),
        ({}, "never", False),
    ],
)
def test_colour_follows_terminal_environment_and_flag(
    environ: dict[str, str], choice: str, colour: bool
) -> None:
    assert screen_for(_terminal(), environ, colour=choice).colour is colour


def test_without_utf8_signs_are_ascii() -> None:
    screen = screen_for(_terminal("ascii"), {})

    signs = [screen.sign(tone) for tone in ("good", "busy", "bad", "off")]
    assert all(sign.isascii() for sign in [*signs, screen.ellipsis])
    assert len(set(signs)) == 4


def test_no_colour_means_no_escape_sequence() -> None:
    assert Screen(colour=False).paint("x", "bad") == "x"
    assert Screen(colour=True).paint("x", "bad") == "\x1b[31mx\x1b[0m"
    assert Screen(colour=True).paint("x", "") == "x"


@pytest.mark.parametrize(
    ("state", "tone"),
    [("ready", "good"), ("loading", "busy"), ("failed", "bad"), ("new-state", "off")],
)
def test_every_state_has_a_tone_also_an_unknown_one(state: str, tone: str) -> None:
    assert tone_of(state) == tone
