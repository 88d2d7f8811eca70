"""control.sock of the gateway: what operators may ask and order.

Supervisor. Every answer is cut from the facts document.

    status models devices version settings   what is
    events {since, limit}                    what was
    stop                                     as SIGTERM
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from cortexd.config import Settings
from ipc import settings
from ipc.control import ControlServer
from ipc.eventlog import Event, EventLog
from ipc.operations import shared_operations
from ipc.peer import Peer, is_operator

Facts = dict[str, Any]


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
        self._server = ControlServer(
            listener,
            {
                **shared_operations(state, events, stop),
                "version": self._version_op,
                "settings": self._settings_op,
            },
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

    async def _version_op(self, _args: Facts, _peer: Peer) -> Facts:
        state = self._state()
        return {"gateway": state["gateway"], **state["version"]}

    async def _settings_op(self, _args: Facts, _peer: Peer) -> Facts:
        return {
            **settings.redacted(self._settings.config),
            "catalogue": settings.redacted(self._settings.catalogue),
        }
