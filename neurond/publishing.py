"""When followers are told the facts: soon after a change, and at most so often.

Supervisor. Changes within a moment are one document; figures that move with traffic
alone are told once a second, when they moved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

Facts = dict[str, Any]

_SOON_S = 0.05
_FIGURES_S = 1.0
_CLOCKS = ("time_s",)


class Publisher:
    def __init__(
        self, build: Callable[[], Facts], publish: Callable[[Facts], None]
    ) -> None:
        self._build = build
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._last: Facts = {}
        self._last_s = 0.0

    def soon(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(_SOON_S, self.now)

    def now(self) -> None:
        self.close()
        document = self._build()
        self._last = _without_clocks(document)
        self._publish(document)

    def tick(self, now_s: float) -> None:
        """Tell what moved without anything having happened."""
        if now_s - self._last_s < _FIGURES_S or self._timer is not None:
            return
        self._last_s = now_s
        if _without_clocks(self._build()) != self._last:
            self.now()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _without_clocks(document: Facts) -> Facts:
    return {key: value for key, value in document.items() if key not in _CLOCKS}
