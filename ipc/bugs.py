"""Where an exception goes that nobody expected, in a process with a loop of its own.

Supervisor and fleet. A callback's or an unimportant task's goes to the journal with its
cause (S41), and the process goes on. One of the tasks that a supervisor lives by ends
the supervisor: a new start is better than one that no longer looks after its children.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ipc.errors import cause_chain
from ipc.journal import Journal


def report_to(journal: Journal, loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop's unhandled exceptions written down."""

    def report(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        cause = " <- ".join(cause_chain(error)) if error else None
        words = str(context.get("message", "a bug"))
        journal.error(words, event="bug", cause=cause)

    loop.set_exception_handler(report)


async def run_until(stop: asyncio.Event, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Until `stop` is set. Raises what a task raised: none of them ends by itself."""
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
    for task in tasks:
        if task.done():
            task.result()


def where(error: BaseException) -> str:
    """The line that raised it: a cause chain says what, this says where."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    code = trace.tb_frame.f_code
    return f"{code.co_filename}:{trace.tb_lineno} {code.co_qualname}"
