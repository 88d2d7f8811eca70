"""Keeps one child process alive until it is told to stop.

Supervisor. A child that lived for a while is replaced at once, one that dies young
after a pause that doubles.

    stopped ─start─▶ running ─died─▶ pausing ─▶ running …
                        └─stop─▶ stopping ─gone─▶ stopped

Invariant: at most one process of this name runs.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from typing import Literal

from ipc.child import Child, Exit, Reaper

_LONG_LIFE_S = 5.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_KILL_S = 2.0

State = Literal["stopped", "running", "pausing", "stopping"]


def pause_s(short_lives: int) -> float:
    """How long to wait after so many deaths in a row, each soon after its birth."""
    if short_lives == 0:
        return 0.0
    return min(_FIRST_PAUSE_S * 2.0 ** min(short_lives - 1, 10), _LONGEST_PAUSE_S)


class Keeper:
    """`launch` spawns the process; `on_exit` hears of each end, ordered or not."""

    def __init__(
        self,
        name: str,
        launch: Callable[[], Child],
        reaper: Reaper,
        on_exit: Callable[[Keeper, Exit | OSError], None],
    ) -> None:
        self.name = name
        self.state: State = "stopped"
        self.gone = asyncio.Event()
        self._launch = launch
        self._reaper = reaper
        self._on_exit = on_exit
        self._child: Child | None = None
        self._born_s = 0.0
        self._short_lives = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def start(self) -> None:
        self.gone.clear()
        self._spawn()

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """`gone` is set when the process is; also used to press on with SIGKILL."""
        if self._timer is not None:
            self._timer.cancel()
        if self._child is None:
            self.state = "stopped"
            self.gone.set()
            return
        self.state = "stopping"
        self._child.kill(sig)

    def replace(self) -> None:
        """SIGKILL to one that answers nothing; another follows as after any death."""
        if self._child is not None:
            self._child.kill(signal.SIGKILL)

    def _spawn(self) -> None:
        self._timer = None
        self._born_s = asyncio.get_running_loop().time()
        try:
            self._child = self._launch()
        except OSError as error:  # no memory or processes left: later, perhaps
            self._ended(error)
            return
        self.state = "running"
        self._reaper.watch(self._child, lambda _child, end: self._ended(end))

    def _ended(self, end: Exit | OSError) -> None:
        self._child = None
        if self.state == "stopping":
            self.state = "stopped"
            self.gone.set()
        else:
            self._pause()
        self._on_exit(self, end)

    def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        is_short = loop.time() - self._born_s < _LONG_LIFE_S
        self._short_lives = self._short_lives + 1 if is_short else 0
        self.state = "pausing"
        self._timer = loop.call_later(pause_s(self._short_lives), self._spawn)


async def end(keepers: Sequence[Keeper], timeout_s: float) -> None:
    """SIGTERM, and SIGKILL to those that need longer."""
    for keeper in keepers:
        keeper.stop()
    if await _all_gone(keepers, timeout_s):
        return
    for keeper in keepers:
        keeper.stop(signal.SIGKILL)
    await _all_gone(keepers, _KILL_S)  # whoever outlives that dies with us


async def _all_gone(keepers: Sequence[Keeper], timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*[keeper.gone.wait() for keeper in keepers])
    except TimeoutError:
        return False
    return True
