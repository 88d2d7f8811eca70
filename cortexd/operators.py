"""control.sock of the gateway: what operators may ask and order.

Supervisor. Every answer is cut from the facts document.

    status models devices version settings   what is
    events {since, limit}                    what was
    stop                                     as SIGTERM
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

from cortexd.config import Settings
from ipc import settings
from ipc.control import ControlServer
from ipc.errors import ClientError
from ipc.eventlog import Event, EventLog
from ipc.peer import Peer

Facts = dict[str, Any]
_MOST_EVENTS = 1000


class Operators:
    def __init__(
        self,
        listener: socket.socket,
        *,
        state: Callable[[], Facts],
        settings: Settings,
        events: EventLog,
        stop: Callable[[], None],
    ) -> None:
        self._state = state
        self._settings = settings
        self._events = events
        self._stop = stop
        handlers = ("status", "models", "devices", "version", "settings", "events")
        self._server = ControlServer(
            listener,
            {name: getattr(self, f"_{name}_op") for name in (*handlers, "stop")},
            authorize=is_operator,
            topics={"state": state, "events": None},
        )

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._server.start(loop)

    def close(self) -> None:
        self._server.close()

    def tell_state(self) -> None:
        self._server.publish("state", self._state())

    def tell_event(self, event: Event) -> None:
        self._server.publish("events", event.to_dict())

    async def _status_op(self, _args: Facts, _peer: Peer) -> Facts:
        return self._state()

    async def _models_op(self, _args: Facts, _peer: Peer) -> Facts:
        return {"models": self._state()["models"]}

    async def _devices_op(self, _args: Facts, _peer: Peer) -> Facts:
        return {"devices": self._state()["devices"]}

    async def _version_op(self, _args: Facts, _peer: Peer) -> Facts:
        state = self._state()
        return {"gateway": state["gateway"], **state["version"]}

    async def _settings_op(self, _args: Facts, _peer: Peer) -> Facts:
        return {
            **settings.redacted(self._settings.config),
            "catalogue": settings.redacted(self._settings.catalogue),
        }

    async def _events_op(self, args: Facts, _peer: Peer) -> Facts:
        since = _whole("since", args.get("since", 0))
        limit = min(_whole("limit", args.get("limit", _MOST_EVENTS)), _MOST_EVENTS)
        found = self._events.since(since, limit)
        return {"events": [event.to_dict() for event in found]}

    async def _stop_op(self, _args: Facts, _peer: Peer) -> Facts:
        self._stop()
        return {}


def is_operator(peer: Peer) -> bool:
    """Root, ourselves, or our group: the socket's own mode says the same."""
    return peer.uid in (0, os.geteuid()) or os.getegid() in (peer.gid, *peer.groups)


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ClientError(f"{name} must be a whole number", param=name)
    return value
