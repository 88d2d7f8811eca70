"""The life of one `cortex run`: node up, gateway up, ready, stop. One event loop.

It owns two daemons and watches their facts over their control sockets. Whatever ends it
(a signal, a daemon that dies, a start that takes too long), both daemons are stopped,
the gateway first, before it returns.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cortexd.ctl.run.console import Console
from cortexd.ctl.run.daemon import Daemon
from cortexd.ctl.run.readiness import Ready, Waiting, judge
from cortexd.ctl.units import span
from ipc.controlclient import ControlClient
from ipc.controlwire import ControlClosed

Facts = dict[str, Any]
STOP_TIMEOUT_S = 45.0
_CONNECT_POLL_S = 0.05
_REDRAW_S = 1.0


class StartError(Exception):
    """Why there is nothing to chat with: one line."""


@dataclass(frozen=True, slots=True)
class Part:
    """One daemon to start; `prepare` runs just before, with the node's facts."""

    name: str
    argv: Sequence[str]
    socket: Path
    prepare: Callable[[Facts], None] = lambda _facts: None


class Session:
    """`run` returns the exit code of `cortex run`."""

    def __init__(
        self,
        node: Part,
        gateway: Part,
        environ: Mapping[str, str],
        console: Console,
        *,
        announce: Callable[[Ready, Facts, float], None],
        start_timeout_s: float,
    ) -> None:
        self._parts = (node, gateway)
        self._environ = environ
        self._console = console
        self._announce = announce
        self._start_timeout_s = start_timeout_s
        self._daemons: list[Daemon] = []
        self._clients: list[ControlClient] = []
        self._facts: dict[str, Facts] = {}
        self._changed = asyncio.Event()
        self._signals = 0
        self._problem = ""
        self._ready = False

    async def run(self) -> int:
        """Start, serve until told to stop, stop."""
        self._work = asyncio.create_task(self._start_and_serve())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        try:
            await self._work
        except asyncio.CancelledError:
            pass  # a signal, or a daemon that died: `_problem` tells which
        except StartError as error:
            self._problem = str(error)
        finally:
            await self._stop()
        if self._problem:
            self._console.say(self._problem)
        return 1 if self._problem else 0

    def _on_signal(self) -> None:
        """The first stops in order, the second at once."""
        self._signals += 1
        self._work.cancel()
        if self._signals > 1:
            for daemon in self._daemons:
                daemon.signal(signal.SIGKILL)

    async def _start_and_serve(self) -> None:
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(self._start_timeout_s):
                ready = await self._start()
        except TimeoutError:
            limit = span(self._start_timeout_s)
            raise StartError(f"not ready after {limit}; {self._doing()}") from None
        self._console.progress(None)
        self._ready = True
        gateway_facts = self._facts[self._parts[1].name]
        self._announce(ready, gateway_facts, time.monotonic() - began_s)
        await asyncio.get_running_loop().create_future()  # until it is cancelled

    async def _start(self) -> Ready:
        node = self._parts[0]
        for part in self._parts:
            try:
                part.prepare(self._facts.get(node.name, {}))
            except OSError as error:
                raise StartError(f"{part.name} can't be prepared: {error}") from error
            self._launch(part)
            await self._watch(part)
        while not isinstance(verdict := self._look(), Ready):
            await self._change()
        return verdict

    def _launch(self, part: Part) -> None:
        try:
            daemon = Daemon(
                part.name, part.argv, self._environ, on_line=self._console.log
            )
        except OSError as error:
            raise StartError(f"{part.name} can't be started: {error}") from error
        self._daemons.append(daemon)
        daemon.exited.add_done_callback(lambda _exit: self._on_exit(daemon))

    def _on_exit(self, daemon: Daemon) -> None:
        """Nobody restarts a daemon here: say why it ended and end, too."""
        if self._work.done() or self._work.cancelling():
            return
        when = "stopped" if self._ready else "stopped before it was ready"
        words = f": {daemon.last_line}" if daemon.last_line else ""
        self._problem = f"{daemon.name} {when}, {daemon.exited.result()}{words}"
        self._work.cancel()

    async def _watch(self, part: Part) -> None:
        """Follow the daemon's facts from the moment that it answers."""
        while True:
            client = ControlClient()
            try:
                await client.connect(part.socket, timeout_s=1.0)
                break
            except (OSError, ControlClosed):
                client.close()
                await asyncio.sleep(_CONNECT_POLL_S)
        self._clients.append(client)
        client.subscribe(["state"], lambda _topic, facts: self._on_facts(part, facts))
        while part.name not in self._facts:
            await self._change()

    def _on_facts(self, part: Part, facts: Facts) -> None:
        self._facts[part.name] = facts
        if not self._ready:
            self._look()  # the model goes on while the gateway is still starting
        self._changed.set()

    def _look(self) -> Waiting | Ready:
        """Where the start stands; shows what is waited for."""
        node, gateway = (self._facts.get(part.name) for part in self._parts)
        verdict = judge(node, gateway)
        if isinstance(verdict, Waiting) and not self._work.cancelling():
            self._console.progress(verdict.model)
        return verdict

    async def _change(self) -> None:
        """New facts, or a second without any: the bar shows time that passes."""
        try:
            await asyncio.wait_for(self._changed.wait(), _REDRAW_S)
        except TimeoutError:
            pass  # nothing new is a reason to draw, too
        self._changed.clear()

    def _doing(self) -> str:
        """What a start that takes too long was waiting for."""
        silent = [part.name for part in self._parts if part.name not in self._facts]
        if silent:
            return f"{silent[0]} does not answer on its control socket"
        return "a model is still being loaded, see the lines above"

    async def _stop(self) -> None:
        """The gateway first, so that no request meets a node that is gone."""
        self._console.progress(None)
        for client in self._clients:
            client.close()
        living = [daemon for daemon in self._daemons if not daemon.exited.done()]
        if living:
            self._console.say("stopping")
        for daemon in reversed(living):
            await daemon.stop(STOP_TIMEOUT_S)
        if living and not self._problem:
            self._console.say("stopped")
