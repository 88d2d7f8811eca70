"""Where an exception goes that nobody expected, in a process with a loop of its own.

Supervisor and fleet. The task that raised it is gone; the process goes on, and the
journal has the cause (S41).
"""

from __future__ import annotations

import asyncio
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
