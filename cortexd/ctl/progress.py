"""Progress of a load: a bar on a terminal, a line per stage elsewhere.

Used by cortexctl load and `cortex run`. A wait over a second says stage and elapsed
time; with percent known also percent and time left; silence is said as such (W1, W2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TextIO

from cortexd.ctl.screen import Screen
from cortexd.ctl.units import shorten, span

_FULL = ("█", "#")
_EMPTY = ("░", ".")
_BAR_WIDTH = 24
_CLEAR_LINE = "\r\x1b[2K"
_STALLED_AFTER_S = 10.0
_PERCENT_PER_LINE = 25


def bar(percent: float, *, width: int = _BAR_WIDTH, unicode: bool = True) -> str:
    """A bar of `width` columns, full only at 100."""
    filled = int(max(0.0, min(percent, 100.0)) / 100 * width)
    index = 0 if unicode else 1
    return _FULL[index] * filled + _EMPTY[index] * (width - filled)


def describe(
    model: dict[str, Any], elapsed_s: float, screen: Screen, *, silent_s: float = 0.0
) -> str:
    """ "smollm2  ███░░  42%  weights  3s, 4s left", as wide as the screen.

    After a long silence a time left would be a guess; the silence stands there instead.
    """
    done = model.get("percent")
    eta_s = model.get("eta_s")
    times = span(elapsed_s)
    if silent_s >= _STALLED_AFTER_S:
        times += f", no progress for {span(silent_s)}"
    elif eta_s:
        times += f", {span(eta_s)} left"
    parts = [
        *([f"{bar(done, unicode=screen.unicode)} {int(done):>3}%"] if done else []),
        str(model.get("stage") or model.get("status") or ""),
        str(model.get("reason") or ""),
        times,
    ]
    rest = "  ".join(filter(None, parts))
    room = max(8, screen.width - len(rest) - 3)
    name = shorten(str(model.get("id", "")), room, screen.ellipsis)
    return f"{name}  {rest}"


class Progress:
    """Draws the facts of one model that is being loaded; forgets nothing it drew."""

    def __init__(
        self,
        stream: TextIO,
        screen: Screen,
        clock: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        """`say` writes a line where there is no terminal to draw on."""
        self._stream = stream
        self._say = say
        self._screen = screen
        self._clock = clock
        self._began_s = self._moved_s = clock()
        self._last: tuple[str, int] | None = None
        self._drawn = ""

    def show(self, model: dict[str, Any]) -> None:
        """Draw the newest facts."""
        now = self._clock()
        place = (
            str(model.get("stage") or model.get("status")),
            int(model.get("percent") or 0),
        )
        moved = place != self._last
        if moved:
            self._moved_s = now
        text = describe(
            model, now - self._began_s, self._screen, silent_s=now - self._moved_s
        )
        if self._screen.terminal:
            self._redraw(text)
        elif moved and self._is_worth_a_line(place):
            self._say(text)
        if moved:
            self._last = place

    def clear(self) -> None:
        """Take the bar off the terminal, so that a line can be written."""
        if self._drawn:
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()
            self._drawn = ""

    def _redraw(self, text: str) -> None:
        text = text[: self._screen.width - 1]
        if text != self._drawn:
            self._stream.write(_CLEAR_LINE + text)
            self._stream.flush()
            self._drawn = text

    def _is_worth_a_line(self, place: tuple[str, int]) -> bool:
        if self._last is None or place[0] != self._last[0]:
            return True
        return place[1] // _PERCENT_PER_LINE > self._last[1] // _PERCENT_PER_LINE
