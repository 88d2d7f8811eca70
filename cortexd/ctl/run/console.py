"""The terminal of `cortex run`: log lines of several processes above one progress bar.

Owned by `cortex run`. Lines of our journals pass as they are, they begin with the time
and the process; anything else gets both put in front.
"""

from __future__ import annotations

import re
import time
from typing import Any, TextIO

from cortexd.ctl.progress import Progress
from cortexd.ctl.screen import Screen

_OWN_FORM = re.compile(r"\d\d:\d\d:\d\d \S")
_TONES = (("error: ", "bad"), ("warning: ", "busy"))


class Console:
    """Writes whole lines, never through the middle of the bar. A reader that is gone is
    no reason to stop serving: then the lines are lost."""

    def __init__(self, stream: TextIO, screen: Screen) -> None:
        self._stream = stream
        self._screen = screen
        self._progress: Progress | None = None

    def log(self, name: str, line: str) -> None:
        """A line that a daemon wrote."""
        text = line.rstrip()
        if not text:
            return
        if not _OWN_FORM.match(text):
            text = f"{time.strftime('%H:%M:%S')} {name}  {text}"
        tone = next((tone for mark, tone in _TONES if mark in text), "")
        self._write(self._screen.paint(text, tone) if tone else text)

    def say(self, text: str) -> None:
        """A line of ours, in the same form."""
        self._write(f"{time.strftime('%H:%M:%S')} cortex  {text}")

    def plain(self, text: str) -> None:
        """A line to be copied: nothing before it."""
        self._write(text)

    def progress(self, model: dict[str, Any] | None) -> None:
        """Draw the load of `model`; None takes the bar away."""
        if model is None:
            if self._progress:
                self._progress.clear()
            self._progress = None
            return
        if self._progress is None:
            self._progress = Progress(
                self._stream, self._screen, time.monotonic, self.say
            )
        self._progress.show(model)

    def _write(self, text: str) -> None:
        try:
            if self._progress:
                self._progress.clear()
            self._stream.write(text + "\n")
            self._stream.flush()
        except OSError:
            return
