"""Following topics of a unix socket's server, whatever becomes of the server.

Used by workers and the supervisor to follow the fleet process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ipc.control import ControlClient
from ipc.errors import ServiceError, cause_chain

_CONNECT_TIMEOUT_S = 5.0
_SUBSCRIBE_TIMEOUT_S = 5.0
_RETRY_S = 0.2

OnEvent = Callable[[str, dict[str, Any]], None]


async def follow_topics(
    path: Path,
    topics: Sequence[str],
    on_event: OnEvent,
    *,
    on_away: Callable[[str], None],
    on_here: Callable[[ControlClient], None] = lambda _client: None,
) -> None:
    """Until cancelled. `on_away` gets the cause each time that there is no server,
    `on_here` each new connection, for requests besides."""
    while True:
        try:
            await _follow_once(path, topics, on_event, on_here)
            on_away("it closed the connection")
        except (OSError, ServiceError) as error:
            on_away(" <- ".join(cause_chain(error)))
        await asyncio.sleep(_RETRY_S)


async def _follow_once(
    path: Path,
    topics: Sequence[str],
    on_event: OnEvent,
    on_here: Callable[[ControlClient], None],
) -> None:
    client = ControlClient()
    await client.connect(path, _CONNECT_TIMEOUT_S)
    try:
        async with asyncio.timeout(_SUBSCRIBE_TIMEOUT_S):
            await client.subscribe(topics, on_event)
        on_here(client)
        await client.closed
    finally:
        client.close()
