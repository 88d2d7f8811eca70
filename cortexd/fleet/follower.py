"""Listens to a node's events, so that the next poll comes when something happened.

Fleet process; one per node. What an event says is not read: the poll finds out, and the
polls go on by themselves where a node has no events or they don't get through. Only
when the node stops do we hang up, so that it need not wait for us.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cortexd.frames import Frames, FrameTooLarge
from cortexd.nodes.http import NodeError
from cortexd.nodes.pool import Patience, Pool, Request

_SILENCE_S = 10.0
_RETRY_S = 1.0
_RETRY_WITHOUT_S = 60.0
_STOPPING = b"event: node.stopping"
_REQUEST = Request("GET", "/events", (("Accept", "text/event-stream"),))


async def follow(pool: Pool, on_event: Callable[[], None]) -> None:
    """Until cancelled; `on_event` also when the stream breaks off."""
    while True:
        pause_s = _RETRY_S
        try:
            has_events = await _follow_once(pool, on_event)
            pause_s = _RETRY_S if has_events else _RETRY_WITHOUT_S
        except (NodeError, FrameTooLarge):
            pass  # the poller finds out, and says so
        await asyncio.sleep(pause_s)


async def _follow_once(pool: Pool, on_event: Callable[[], None]) -> bool:
    """False when the node has no events. Raises NodeError, FrameTooLarge."""
    answer = await pool.request(_REQUEST, Patience(_SILENCE_S))
    try:
        if answer.status != 200:
            return answer.status >= 500
        frames = Frames()
        while data := await answer.read():
            lines = frames.feed(data).split(b"\n")
            if any(line.startswith(b"data:") for line in lines):
                on_event()
            if _STOPPING in lines:
                return True
        return True
    finally:
        answer.release()
        on_event()
