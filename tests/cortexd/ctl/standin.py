"""A daemon that has a control socket and nothing else, for tests of what talks to it.

    python -m tests.cortexd.ctl.standin SOCKET KIND [WORD …]

KIND is node or gateway; its facts are those of `facts`. WORDs change how it behaves:
deaf (accepts, never answers) · die (says why and exits 100) · stubborn (ignores
SIGTERM) · refuse (authorises nobody) · unloaded (the model is not loaded) · stuck (a
load never ends) · broken (a load fails) · busy (a request runs) · starting (the model
is loaded once somebody follows its facts) · impaired.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from ipc.control import ControlServer
from ipc.errors import error_for
from ipc.peer import Peer
from tests.cortexd.ctl import facts as given

Facts = dict[str, Any]
MODEL = "smollm2-135m-instruct"
STEPS = (("convert", 10.0), ("weights", 40.0), ("weights", 80.0), ("warm-up", 95.0))
STEP_S = 0.05


class StandIn:
    """Owns one facts document; its one model walks through STEPS when it is loaded."""

    def __init__(self, kind: str, words: set[str]) -> None:
        self.words = words
        self.facts = given.gateway() if kind == "gateway" else given.node()
        self.server: ControlServer
        self._event_id = 2
        self.followed = asyncio.Event()
        if "impaired" in words:
            line = {"level": "error", "code": "CX-CUDA", "text": "x", "next": "y"}
            self.facts |= {"state": "impaired", "health": [line]}
        if "unloaded" in words:
            self._set(status="unloaded", percent=None)
        if "busy" in words:
            self._set(running=2)

    def handlers(self) -> dict[str, Any]:
        return {
            "status": self._status,
            "models": self._status,
            "load": self._load,
            "unload": self._unload,
            "events": self._events,
            "faults": self._faults,
            "inject": self._inject,
        }

    def current(self) -> Facts:
        """What a new follower is told first."""
        self.followed.set()
        return self.facts

    async def start(self) -> None:
        """A first load that no follower misses."""
        self._set(status="loading", stage="queued", percent=0.0)
        await self.followed.wait()
        await self.walk("loaded")

    async def walk(self, goal: str) -> None:
        """The stages of a load, published one by one."""
        for stage, percent in STEPS:
            self._set(status="loading", stage=stage, percent=percent, eta_s=3)
            await asyncio.sleep(STEP_S)
            while "stuck" in self.words:
                await asyncio.sleep(STEP_S)
            if "broken" in self.words:
                error = error_for("load_failed", "no tensor lm_head.weight")
                self._set(status="failed", error=error.to_wire())
                return
        self._set(status=goal, percent=100.0, stage="")

    async def _status(self, _args: Facts, _peer: Peer) -> Facts:
        if "deaf" in self.words:
            await asyncio.Event().wait()
        return self.facts

    async def _load(self, args: Facts, _peer: Peer) -> Facts:
        if args["model_id"] != MODEL:
            raise error_for("model_not_found", f"there is no model {args['model_id']}")
        if args.get("context", 0) > 8192:
            raise error_for("insufficient_vram", "needs 40 GiB, 12 GiB are free")
        model = self.facts["models"][0]
        if model["status"] == "unloaded":
            self._set(status="loading", stage="queued", percent=0.0)
            self.server.spawn(self.walk("loaded"))
        return {"status": model["status"], "model": model, "version": "b00t.2"}

    async def _unload(self, _args: Facts, _peer: Peer) -> Facts:
        self._set(status="unloading", running=0)
        self.server.spawn(self._let_go())
        return {"status": "unloading", "model": self.facts["models"][0]}

    async def _let_go(self) -> None:
        await asyncio.sleep(STEP_S)
        self._set(status="unloaded", percent=None)

    async def _faults(self, _args: Facts, _peer: Peer) -> Facts:
        return {"injection": False, "kinds": [], "points": []}

    async def _inject(self, _args: Facts, _peer: Peer) -> Facts:
        words = "faults are simulated only where [faults] injection is true"
        raise error_for("insufficient_permissions", words)

    async def _events(self, args: Facts, _peer: Peer) -> Facts:
        self.server.spawn(self._happen())
        started = {"id": 1, "time_s": given.NOW_S, "kind": "node.started"}
        ready = {
            "id": 2,
            "time_s": given.NOW_S + 1,
            "kind": "device.ready",
            "device": "cpu-0",
            "generation": 1,
        }
        known = [event for event in (started, ready) if event["id"] > args["since"]]
        return {"events": known[: args["limit"]]}

    async def _happen(self) -> None:
        """One more event, for those who follow."""
        for _ in range(40):
            await asyncio.sleep(STEP_S)
            self._event_id += 1
            event = {
                "id": self._event_id,
                "time_s": given.NOW_S,
                "kind": "model.loaded",
            }
            self.server.publish("events", {**event, "model": MODEL})

    def _set(self, **changes: Any) -> None:
        self.facts["models"][0].update(changes)
        if hasattr(self, "server"):
            self.server.publish("state", self.facts)


async def serve(path: Path, kind: str, words: set[str]) -> None:
    """Until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    heed = (lambda: None) if "stubborn" in words else stop.set
    loop.add_signal_handler(signal.SIGTERM, heed)
    stand_in = StandIn(kind, words)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        stand_in.server = ControlServer(
            listener,
            stand_in.handlers(),
            authorize=lambda _peer: "refuse" not in words,
            topics={"state": stand_in.current, "events": None},
        )
        stand_in.server.start(loop)
        if "starting" in words:
            stand_in.server.spawn(stand_in.start())
        print(f"12:00:01 {kind}  serving", flush=True)
        await stop.wait()
        print(f"12:00:02 {kind}  stopping", flush=True)
        stand_in.server.close()


def main(argv: list[str]) -> int:
    path, kind, *words = argv
    if "die" in words:
        print(f"12:00:01 {kind}  error: neuron.toml:3: unknown key 'lisen'", flush=True)
        return 100
    asyncio.run(serve(Path(path), kind, set(words)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
