"""One thread beside the step loop, for calls that release the interpreter.

Device process. It decides nothing: what it computes is taken by the loop. A call that
doesn't come back can be left behind with its thread, which never holds up the end of
the process.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from neurond.grammar import roomy_threads

Result = TypeVar("Result")
_Call = tuple["Future[Any]", Callable[[], Any]]


class SideThread:
    """Runs calls in order. Its stack has room for a compiler that recurses."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        with roomy_threads():
            threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, call: Callable[[], Result]) -> Future[Result]:
        future: Future[Result] = Future()
        self._calls.put((future, call))
        return future

    def stop(self) -> None:
        """End the thread after what was submitted."""
        self._calls.put(None)

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001  whoever waits meets it
                future.set_exception(error)
            del item, future, call  # or they would live until the next one comes
