"""What the terminal can show, found once: width, colour, character set.

Used by cortexctl and `cortex run`. Data goes to stdout, words to stderr. Colour never
carries a fact alone: a state is a word with a sign (C8).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

DEFAULT_WIDTH = 80
_WIDE = 1000
_TONES = {"good": "32", "busy": "33", "bad": "31", "off": "2", "title": "1"}
_SIGNS = {"good": "●", "busy": "◐", "bad": "✗", "off": "○"}
_ASCII_SIGNS = {"good": "+", "busy": "~", "bad": "!", "off": "-"}

_STATES = {
    "good": "ready loaded up",
    "busy": "unknown starting dying backoff converting loading recovering unloading"
    " draining impaired fetching stopping",
    "bad": "failed poisoned faulted down unreachable",
}
_TONE_OF = {state: tone for tone, states in _STATES.items() for state in states.split()}


def tone_of(state: str) -> str:
    """good, busy, bad or off; a state that is not known yet counts as off."""
    return _TONE_OF.get(state, "off")


@dataclass(frozen=True, slots=True)
class Screen:
    """One stream's abilities."""

    width: int = DEFAULT_WIDTH
    colour: bool = False
    unicode: bool = True
    terminal: bool = False

    @property
    def ellipsis(self) -> str:
        return "…" if self.unicode else "..."

    def paint(self, text: str, tone: str) -> str:
        """`text` in the tone's colour, where there are colours."""
        code = _TONES.get(tone) if self.colour else None
        return f"\x1b[{code}m{text}\x1b[0m" if code else text

    def sign(self, tone: str) -> str:
        """The sign that says the tone without a colour."""
        return (_SIGNS if self.unicode else _ASCII_SIGNS)[tone]


def screen_for(
    stream: TextIO,
    environ: Mapping[str, str],
    *,
    colour: str = "auto",
    wide: bool = False,
) -> Screen:
    """What `stream` can show: NO_COLOR, TERM=dumb and --color are obeyed."""
    terminal = stream.isatty()
    plain = bool(environ.get("NO_COLOR")) or environ.get("TERM") == "dumb"
    return Screen(
        width=_WIDE if wide else _width(stream, terminal),
        colour=colour == "always" or (colour == "auto" and terminal and not plain),
        unicode=_is_utf8(stream),
        terminal=terminal,
    )


def _width(stream: TextIO, terminal: bool) -> int:
    if not terminal:
        return DEFAULT_WIDTH
    try:
        return max(40, os.get_terminal_size(stream.fileno()).columns or DEFAULT_WIDTH)
    except OSError:
        return DEFAULT_WIDTH


def _is_utf8(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "") in ("utf8", "utf8sig")
