"""What the control sockets of both daemons answer alike.

Supervisors. Every answer is cut from the facts document or the event log.

    status models devices     what is
    events {since, limit}     what was, the oldest first
    stop                      as SIGTERM
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ipc.controlserver import Handler
from ipc.errors import ClientError
from ipc.eventlog import EventLog
from ipc.peer import Peer

Facts = dict[str, Any]
_MOST_EVENTS = 1000


def shared_operations(
    state: Callable[[], Facts], events: EventLog, stop: Callable[[], None]
) -> dict[str, Handler]:
    """Handlers by name; a daemon adds its own."""

    async def status(_args: Facts, _peer: Peer) -> Facts:
        return state()

    async def models(_args: Facts, _peer: Peer) -> Facts:
        return {"models": state()["models"]}

    async def devices(_args: Facts, _peer: Peer) -> Facts:
        return {"devices": state()["devices"]}

    async def events_op(args: Facts, _peer: Peer) -> Facts:
        since = whole(args, "since", 0)
        limit = min(whole(args, "limit", _MOST_EVENTS), _MOST_EVENTS)
        found = events.since(since, limit)
        return {"events": [event.to_dict() for event in found]}

    async def stop_op(_args: Facts, _peer: Peer) -> Facts:
        stop()
        return {}

    return {
        "status": status,
        "models": models,
        "devices": devices,
        "events": events_op,
        "stop": stop_op,
    }


def whole(args: Mapping[str, Any], name: str, default: int) -> int:
    """A count that a request brought. Raises ClientError naming it."""
    value = args.get(name, default)
    if type(value) is not int or value < 0:
        raise ClientError(f"{name} must be a whole number", param=name)
    return value
