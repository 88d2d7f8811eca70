"""What the supervisor is to be told, sent as its link takes it.

Device process, torch-free. The supervisor may be busy; a device never waits for it
(streams go on), so reports wait here, in order. Progress is worth nothing late and is
left out while anything waits.
"""

from __future__ import annotations

from collections import deque

from ipc.link import Link, LinkFull
from ipc.messages import LinkUp, LoadProgress

_LAST_WORDS_TIMEOUT_S = 0.5


class Reports:
    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: deque[LinkUp] = deque()

    def put(self, message: LinkUp) -> None:
        """Send, or keep. Raises LinkClosed."""
        if self._waiting and isinstance(message, LoadProgress):
            return
        self._waiting.append(message)
        self.flush()

    def flush(self) -> None:
        """Raises LinkClosed."""
        try:
            while self._waiting:
                self._link.send(self._waiting[0], timeout_s=0)
                self._waiting.popleft()
        except LinkFull:
            pass  # the next turn tries again

    def last_words(self, message: LinkUp) -> None:
        """Ahead of everything, waiting a little. Raises LinkClosed."""
        try:
            self._link.send(message, timeout_s=_LAST_WORDS_TIMEOUT_S)
        except LinkFull:
            pass  # the exit code still says that it was a fault
