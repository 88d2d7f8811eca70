"""`cortexd: supervisor`: starts the gateway's children and watches them.

Owns the listening sockets, control.sock and the event log. It reads no request and
waits for no child; what it knows of the fleet it was told by the fleet process.

    SIGTERM ─▶ frontend drains ─▶ fleet and metrics end ─▶ exit 0
    a child dies ─▶ it is started again; the others don't notice
    a child exits with 100 ─▶ all stop, exit 100
    a bug of ours          ─▶ exit 70, the children die with us

Invariant: every wait has a deadline, and nothing is left behind by a stop.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cortexd import facts
from cortexd.following import follow_topics
from cortexd.launch import Launch
from cortexd.operators import Operators
from ipc import listeners
from ipc.bugs import report_to, run_until
from ipc.child import EXIT_OK, EXIT_PERMANENT, Child, Exit, Reaper, become_subreaper
from ipc.eventlog import EventLog
from ipc.journal import Journal
from ipc.keeper import Keeper, end
from ipc.systemd import notify

_TICK_S = 0.25
_CUT_S = 6.0
"""What the front end gets beyond the drain, to end what it must cut."""
_LAST_S = 2.0

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Effects:
    """What the supervisor writes to."""

    journal: Journal
    events: EventLog


class Supervisor:
    def __init__(
        self, launch: Launch, control: socket.socket, effects: Effects
    ) -> None:
        self._launch = launch
        self._journal = effects.journal
        self._events = effects.events
        self._started_s = time.time()
        self._fleet: Facts = {}
        self._listen = {
            "http": listeners.bound(launch.sockets.http),
            "metrics": listeners.bound(launch.sockets.metrics),
        }
        self._exit_code = EXIT_OK
        self._wanted_stop = asyncio.Event()
        self._is_stopping = False
        self._loop = asyncio.get_running_loop()
        self._reaper = Reaper(self._loop)
        self._frontend = self._keeper("frontend", launch.frontend)
        self._others = (
            self._keeper("fleet", launch.fleet),
            self._keeper("metrics", launch.metrics),
        )
        self._operators = Operators(
            control,
            state=self.facts,
            settings=launch.settings,
            events=self._events,
            stop=self._wanted_stop.set,
        )

    def _keeper(self, name: str, spawn: Callable[[], Child]) -> Keeper:
        return Keeper(name, spawn, self._reaper, self._on_exit)

    async def run(self) -> int:
        """Until SIGTERM; the exit code."""
        become_subreaper()
        report_to(self._journal, self._loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._wanted_stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._refuse_reload)
        self._operators.start(self._loop)
        for keeper in (*self._others, self._frontend):
            keeper.start()
        tasks = [
            self._loop.create_task(self._follow_fleet()),
            self._loop.create_task(self._tick()),
        ]
        self._note("gateway.started")
        self._announce()
        await run_until(self._wanted_stop, tasks)
        await self._stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._close()
        return self._exit_code

    def facts(self) -> Facts:
        """The gateway's facts document."""
        away = [k.name for k in self._keepers if k.state == "pausing"]
        own = facts.Own(
            gateway=self._launch.gateway,
            started_s=self._started_s,
            time_s=time.time(),
            is_stopping=self._is_stopping,
            listen=self._listen,
            away=tuple(away),
        )
        return facts.of_gateway(self._fleet, own)

    @property
    def _keepers(self) -> tuple[Keeper, ...]:
        return (self._frontend, *self._others)

    # ---- what happens ---------------------------------------------------------------

    async def _follow_fleet(self) -> None:
        path = self._launch.fleet_path
        topics = ("state", "events")
        await follow_topics(path, topics, self._hear, on_away=lambda _cause: None)

    def _hear(self, topic: str, data: Facts) -> None:
        """The fleet process spoke."""
        if topic == "events":
            fields = {key: value for key, value in data.items() if key != "kind"}
            self._note(str(data.get("kind", "")), **fields)
            return
        changed = data.get("state") != self._fleet.get("state")
        self._fleet = data
        self._operators.tell_state()
        if changed:
            self._announce()

    def _on_exit(self, keeper: Keeper, how: Exit | OSError) -> None:
        if self._is_stopping:
            return
        self._journal.error(
            f"{keeper.name} ended: {how}",
            event=f"{keeper.name}.died",
        )
        self._note(f"{keeper.name}.died", reason=str(how))
        if isinstance(how, Exit) and how.meaning == "permanent":
            self._exit_code = EXIT_PERMANENT
            self._wanted_stop.set()
        self._operators.tell_state()

    def _note(self, kind: str, **fields: Any) -> None:
        self._operators.tell_event(self._events.append(kind, **fields))

    def _announce(self) -> None:
        """To the service manager: we listen, and how the fleet is."""
        nodes = self._fleet.get("nodes", [])
        up = sum(node["state"] == "up" for node in nodes)
        state = self.facts()["state"]
        notify(READY=1, STATUS=f"{state}: {up} of {len(nodes)} nodes up")

    def _refuse_reload(self) -> None:
        words = "SIGHUP is ignored: the configuration is read at a start only"
        self._journal.warning(words, event="gateway.reload")

    async def _tick(self) -> None:
        while True:
            self._reaper.reap_orphans()
            self._journal.flush()
            notify(WATCHDOG=1)
            await asyncio.sleep(_TICK_S)

    # ---- the end --------------------------------------------------------------------

    async def _stop(self) -> None:
        self._is_stopping = True
        notify(STOPPING=1, STATUS="stopping")
        self._note("gateway.stopping")
        self._operators.tell_state()
        self._launch.sockets.http.close()  # else connections would queue for nobody
        drain_s = self._launch.settings.config.gateway.drain_s
        await end([self._frontend], drain_s + _CUT_S)
        await end(self._others, _LAST_S)

    def _close(self) -> None:
        self._operators.close()
        self._reaper.close()
        self._journal.close()
        for listener in (self._launch.sockets.metrics, self._launch.sockets.fleet):
            listener.close()
