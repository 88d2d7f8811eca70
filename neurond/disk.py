"""Reading the disk without waiting for it: calls that may hang in a file system.

Supervisor. Each call runs in a thread of its own that nobody joins: a mount that hangs
costs that thread and the caller's deadline, and never the end of the daemon (S13).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def read(call: Callable[[], T]) -> T:
    """What `call` returns or raises. Cancelled, it is left to itself."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]  # T may be None

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as raised:  # the thread's border: it travels to the caller
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            pass  # the loop is closed: the daemon has ended meanwhile

    threading.Thread(target=work, name="disk", daemon=True).start()
    return await outcome
