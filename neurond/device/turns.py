"""Other people's Python, run a slice at a time between the steps of running streams.

Device process. Building a model, placing its parameters and packing its weights are
calls that take a tenth of a second and more, and can't be cut from outside. So such a
call runs on a thread that gives its turn back at the first torch call whose begin or
end is after its slice.

    loop    ──go on──▶ waits ············ ──go on──▶ waits ·····
    thread  waits ···· runs ──turn back──▶ waits ···· runs ──▶ done

Torch calls are the check points because no lock of an import or a log is held there. A
second thread that ran freely would be no better than one long call: it takes the
interpreter at each of a step's thousands of torch calls and keeps it for 5 ms.

One torch call, read or checksum may be longer than a slice, but it leaves the
interpreter alone. Where `overlaps` is said the loop doesn't wait for its end: the
thread goes on beside it at a low priority, as far as its next check point.

Invariants: but for such a call exactly one of the two threads runs; the loop never sees
the default dtype that the call has set; whoever closes the generator has the thread
joined.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

T = TypeVar("T")
Y = TypeVar("Y")
_SLICE_S = 0.005
_GRACE_S = 0.002
_PATIENCE_S = 0.005
_BUSY_S = 0.001
_STEPS_BACK, _LOWEST = 10, 19
_here = threading.local()


def in_turns(
    call: Callable[[], T], *, overlaps: bool = False
) -> Generator[None, None, T]:
    """Run `call`, yielding after each slice; returns or raises what it does.

    `overlaps`: its long torch calls may go on beside the loop. Not for a call that sets
    the default dtype.
    """
    if getattr(_here, "in_one_go", False):
        yield
        return call()
    turn = _Turn(overlaps=overlaps)
    with ThreadPoolExecutor(1, "load") as pool:
        future = pool.submit(turn.take, call)
        try:
            while turn.give():
                yield
        finally:
            turn.stop()
        return future.result()


def in_one_go(steps: Generator[Y, None, T]) -> Generator[Y, None, T]:
    """The same steps, but what would run in turns runs whole, on the loop's thread.

    For a device that serves nobody yet: a thread for each call, and torch's kernels
    made anew on each, take a third of a load's time.
    """
    try:
        while True:
            _here.in_one_go = True
            try:
                step = next(steps)
            finally:
                _here.in_one_go = False
            yield step
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        steps.close()


def clock() -> float:
    """Seconds, for differences; inside of a call in turns they pass in turns alone."""
    return time.perf_counter() - float(getattr(_here, "away_s", 0.0))


def in_background(call: Callable[[], T]) -> Generator[None, None, T]:
    """Run `call` beside the loop: for work that leaves the interpreter alone.

    Yields until it is done. Closing the generator waits for the call's end.
    """
    patience = Patience()
    with ThreadPoolExecutor(1, "load", stand_back) as pool:
        future = pool.submit(call)
        while not patience.wait(future):
            yield
        return future.result()


def stand_back(thread_id: int = 0) -> None:
    """Lower a thread's priority, this one's by default; on Linux it is a thread's own.

    There is no way back without privileges.
    """
    before = os.getpriority(os.PRIO_PROCESS, thread_id)
    os.setpriority(os.PRIO_PROCESS, thread_id, min(_LOWEST, before + _STEPS_BACK))


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

    def __init__(self, *, overlaps: bool) -> None:
        self._most_s = _SLICE_S + _GRACE_S if overlaps else None
        self._go = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self._until_s = 0.0
        self._thread_id = 0
        self._stopping = False
        self._is_beside = False

    # -- on the loop

    def give(self) -> bool:
        """Let it run for a slice. Whether it isn't done yet."""
        if self._is_beside and not self._await_back():
            return True
        if self._over:
            return False
        dtype = torch.get_default_dtype()
        self._until_s = time.monotonic() + _SLICE_S
        self._go.release()
        is_back = self._await_back()
        torch.set_default_dtype(dtype)
        return not (is_back and self._over)

    def _await_back(self) -> bool:
        """Whether it has stopped; or else it goes on beside the loop."""
        is_back = self._back.acquire(timeout=self._most_s)
        self._is_beside = not is_back
        if not is_back and self._thread_id:
            stand_back(self._thread_id)  # not before: idle, a device only loads
            self._thread_id = 0
        return is_back

    def stop(self) -> None:
        """End it at its next check point."""
        self._stopping = True
        self._go.release()

    # -- on the thread

    _over = False

    def take(self, call: Callable[[], T]) -> T:
        self._thread_id = threading.get_native_id()
        self._go.acquire()
        _here.away_s = 0.0
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
        left_s = time.perf_counter()
        dtype = torch.get_default_dtype()
        self._back.release()
        self._go.acquire()
        torch.set_default_dtype(dtype)
        _here.away_s += time.perf_counter() - left_s
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
        result = func(*args, **(kwargs or {}))
        self._turn.check()
        return result
