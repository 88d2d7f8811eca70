"""Other people's Python, run a slice at a time between the steps of running streams.

Device process. Building a model and placing its parameters are single calls into
transformers that take a tenth of a second and more, hold the interpreter all the while,
and can't be cut from outside. So such a call runs on a thread that never runs at the
same time as the loop: it holds a turn, and gives it back at the first torch call after
its slice is over.

    loop    ──go on──▶ waits ············ ──go on──▶ waits ·····
    thread  waits ···· runs ──turn back──▶ waits ···· runs ──▶ done

Torch calls are the check points because no lock of an import or a log is held there. A
second thread that ran freely would be no better than one long call: it takes the
interpreter at each of a step's thousands of torch calls and keeps it for 5 ms.

Invariants: exactly one of the two threads runs; the loop never sees the default dtype
that the call has set; whoever closes the generator has the thread joined.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

T = TypeVar("T")
_SLICE_S = 0.015
_PATIENCE_S = 0.005
_BUSY_S = 0.001


def in_turns(call: Callable[[], T]) -> Generator[None, None, T]:
    """Run `call`, yielding after each slice; returns or raises what it does."""
    turn = _Turn()
    with ThreadPoolExecutor(1, "load") as pool:
        future = pool.submit(turn.take, call)
        try:
            while turn.give(future):
                yield
        finally:
            turn.stop()
        return future.result()


def in_background(call: Callable[[], T]) -> Generator[None, None, T]:
    """Run `call` beside the loop: for work that leaves the interpreter alone.

    Yields until it is done. Closing the generator waits for the call's end.
    """
    patience = Patience()
    with ThreadPoolExecutor(1, "load") as pool:
        future = pool.submit(call)
        while not patience.wait(future):
            yield
        return future.result()


class Patience:
    """Waits for a helper only while the loop has nothing else to do."""

    def __init__(self) -> None:
        self._left_s = time.monotonic()

    def wait(self, future: Future[Any]) -> bool:
        """Whether it is done, after at most 5 ms; at once where streams run."""
        away_s = time.monotonic() - self._left_s
        wait((future,), timeout=0 if away_s > _BUSY_S else _PATIENCE_S)
        self._left_s = time.monotonic()
        return future.done()


class _Stopped(BaseException):
    """Nobody wants the result; not an Exception, so that nobody catches it."""


class _Turn:
    """Who of the two may run."""

    def __init__(self) -> None:
        self._go = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self._until_s = 0.0
        self._stopping = False

    # -- on the loop

    def give(self, future: Future[Any]) -> bool:
        """Let it run for a slice. Whether it isn't done yet."""
        dtype = torch.get_default_dtype()
        self._until_s = time.monotonic() + _SLICE_S
        self._go.release()
        self._back.acquire()
        torch.set_default_dtype(dtype)
        return not self._over

    def stop(self) -> None:
        """End it at its next check point."""
        self._stopping = True
        self._go.release()

    # -- on the thread

    _over = False

    def take(self, call: Callable[[], T]) -> T:
        self._go.acquire()
        try:
            with _CheckPoints(self):
                self.check()
                return call()
        finally:
            self._over = True
            self._back.release()

    def check(self) -> None:
        if self._stopping:
            raise _Stopped
        if time.monotonic() < self._until_s:
            return
        dtype = torch.get_default_dtype()
        self._back.release()
        self._go.acquire()
        torch.set_default_dtype(dtype)
        if self._stopping:
            raise _Stopped


class _CheckPoints(TorchFunctionMode):
    """Of this thread alone; sees every torch call."""

    def __init__(self, turn: _Turn) -> None:
        super().__init__()
        self._turn = turn

    def __torch_function__(  # noqa: PLR0913  torch's protocol
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self._turn.check()
        return func(*args, **(kwargs or {}))
