"""What becomes of requests whose device died: they wait, move, or end.

Front-end worker. The table gives a device's next life what waits for it; here is
decided from the node's facts whether there will be one. `fate` is pure.

    home comes back       wait       model loaded elsewhere     move there
    model being moved     wait       home is back with it       go on there
                                     model gone or failed       end, with the reason

A device that was taken out and reset comes back before its models do: what was given to
it then is refused and waits on.

Invariant: nothing waits beyond the resume deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ipc.errors import ServiceError, error_for
from neurond.frontend.admission import Fact
from neurond.frontend.node import Node
from neurond.serving.requests import RequestTable

TICK_S = 0.25
_GONE = ("failed", "unloading", "unloaded")


def fate(
    home: str, fact: Fact | None, devices: Mapping[str, str]
) -> ServiceError | str | None:
    """None: wait; a device: go on there; an error: nobody will go on with it.

    `home` is the device that died, `fact` the model's, `devices` their states.
    """
    if fact is None or fact["status"] in _GONE:
        return _lost(fact)
    alive = [name for name in fact["devices"] if devices.get(name) != "failed"]
    if fact["status"] != "loaded":
        return None
    able = [home] if home in alive else alive
    return next((name for name in able if devices.get(name) == "ready"), None)


def _lost(fact: Fact | None) -> ServiceError:
    """The device died, and what it had is not loaded again."""
    wire: list[Any] = (fact and fact.get("error")) or []
    if wire and wire[0] == "device_failed":
        return error_for("device_failed", "the device died and was taken out")
    status = fact["status"] if fact else "unknown"
    words = f"the device that served the request died, and the model is {status} now"
    return error_for("no_healthy_node", words)


class Resumption:
    """Looks after what the table has parked."""

    def __init__(self, table: RequestTable, node: Node) -> None:
        self._table = table
        self._node = node

    async def keep(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            self.look()

    def look(self) -> None:
        """At every tick and whenever the facts are new."""
        self._table.tick()
        if not self._node.facts:
            return
        states = {d["device"]: d["state"] for d in self._node.facts["devices"]}
        for entry in self._table.parked:
            fact = self._node.model(entry.submit.model)
            decided = fate(entry.device, fact, states)
            if isinstance(decided, ServiceError):
                self._table.give_up(entry, decided)
            elif decided is not None:
                self._table.move(entry, decided)
