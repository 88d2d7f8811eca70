"""Stop strings over a stream of text: what may be shown, and when it is over.

Pure; one `StopBuffer` per sequence. Text that could still become a stop string is held
back; everything else passes at once.

Invariant: the result depends on the text alone, not on how it was cut into pushes. The
first stop string to be complete wins; of those complete at the same character, the
longest.
"""

from __future__ import annotations


class StopBuffer:
    __slots__ = ("_held", "_stops")

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """What may be shown now, and whether a stop string is complete."""
        if not self._stops:
            return text, False
        text = self._held + text
        cut = _first_stop(text, self._stops)
        if cut is not None:
            self._held = ""
            return text[:cut], True
        keep = _held_back(text, self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """The text held back, once nothing can follow it."""
        held, self._held = self._held, ""
        return held


def _first_stop(text: str, stops: tuple[str, ...]) -> int | None:
    """Where the stop string that is complete first begins."""
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def _held_back(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that begins a stop string."""
    return max([_overlap(text, stop) for stop in stops])


def _overlap(text: str, stop: str) -> int:
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return len(text) - at
        at = text.find(stop[0], at + 1)
    return 0
