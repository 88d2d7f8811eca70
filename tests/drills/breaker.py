"""Breaks a node on purpose, one blow after the other, at seeded moments.

Runs in a thread beside the clients. Moments are token positions: so many events of all
streams after the device came back. Between two blows the device serves again and has
said something, so that no life is without a token unless that is the blow's purpose.
"""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from neurond.device.injection import KINDS
from tests.drills.ledger import Ledger
from tests.harness import Node, title_of

_PATIENCE_S = 45.0
_LEAST_EVENTS = 40
_MOST_EARLY = 3  # five lives without a token take a device out
_ENDS_NOBODY = ("slow", "xid:43")
_OWN: Mapping[str, tuple[str, int]] = {
    # kind: what the request is told, and how many requests of one step may be
    "nan": ("nan_logits", 1),
    "shape": ("internal_error", 16),
    "oom": ("insufficient_vram", 16),
}
"""Faults that end requests and no process."""

PARTS = ("detect_s", "memory_s", "respawn_s", "reload_s", "first_token_s")


class Breaker:
    """`recoveries`: the parts of each one that was seen to its end, by part."""

    def __init__(self, node: Node, ledger: Ledger, rng: random.Random) -> None:
        self.last = ""
        self.blows: Counter[str] = Counter()
        self.phases: Counter[str] = Counter()
        self.recoveries: list[dict[str, float]] = []
        self._node = node
        self._ledger = ledger
        self._rng = rng
        (device,) = node.facts()["devices"]
        self._device: str = device["device"]
        self._seen = 0

    # ---- blows; each returns when the device serves again, or was not hurt

    def kill(self) -> None:
        """SIGKILL at a random token."""
        self._await_moment()
        self._kill("kill")
        self._await_back()

    def stop(self) -> None:
        """SIGSTOP at a random token: a device that hangs."""
        self._await_moment()
        before = self._facts()
        self._signal(before, signal.SIGSTOP)
        self._note("stop")
        self._await_life_after(before)
        self._await_back()

    def kill_again(self) -> None:
        """SIGKILL, and again while it comes back."""
        self._await_moment()
        self._kill("kill")
        for _ in range(self._rng.randint(1, _MOST_EARLY)):
            self._await_newborn()
            time.sleep(self._rng.uniform(0, 0.5))
            if self._facts()["state"] == "ready":
                break
            self._kill("early kill")
        self._await_back()

    def kill_worker(self) -> None:
        """A front-end worker: its clients lose their streams, nobody else's."""
        self._await_moment()
        workers = self._workers()
        died_s = self._ledger.workers_died_s
        died_s.append(math.inf)  # a stream may end before we know the time
        self._rng.choice(workers).kill()
        died_s[-1] = time.monotonic()
        self._note("worker")
        old = {process.pid for process in workers}
        many = len(workers)  # with none alive nobody could answer
        self._wait(lambda: len(self._workers()) == many, "no new worker")
        self._wait(lambda: {p.pid for p in self._workers()} != old, "it lives on")

    def _workers(self) -> list[psutil.Process]:
        mine = self._node.processes()
        return [p for p in mine if title_of(p).startswith("neurond: worker")]

    def kill_zygote(self) -> None:
        """Devices live on; the next one is forked from another."""
        self._await_moment()
        old = self._node.kill("zygote")
        self._note("zygote")
        self._wait(lambda: self._node.find("zygote").pid != old, "no new zygote")

    def inject(self, kind: str) -> None:
        """A fault of `cortexctl fault list`."""
        self._await_moment()
        before = self._facts()
        code, most = _OWN.get(kind, ("", 0))
        self._ledger.allowed[code] += most
        if kind == "wrong_result":
            self._order(kind)
            self._kill("kill")
            self._await_life_after(before, lives=2)
        else:
            self._order(kind, at_step=self._rng.randint(1, 40))
            if not code and kind not in _ENDS_NOBODY:
                self._await_life_after(before)
            else:
                self._await_moment()
        self._note(kind)
        self._await_back()
        self._ledger.allowed[code] = 0

    # ---- what a blow is made of

    def _note(self, blow: str) -> None:
        self.blows[blow] += 1
        self.last = blow

    def _order(self, kind: str, **more: Any) -> None:
        self._node.control("inject", device=self._device, kind=kind, **more)

    def _kill(self, name: str) -> None:
        device = self._facts()
        self._signal(device, signal.SIGKILL)
        self._note(name)
        self._wait(lambda: self._facts()["pid"] != device["pid"], "nobody noticed")

    def _signal(self, device: dict[str, Any], number: int) -> None:
        self.phases[device["phase"]] += 1
        try:
            os.kill(device["pid"], number)
        except ProcessLookupError:
            pass  # it was killed for something else meanwhile

    def _await_moment(self) -> None:
        """A token position: by then the last recovery is complete."""
        due = self._ledger.num_events + _LEAST_EVENTS + self._rng.randint(0, 160)
        self._wait(lambda: self._ledger.num_events >= due, "no stream goes on")
        self._note_recovery()

    def _await_life_after(self, before: dict[str, Any], lives: int = 1) -> None:
        wanted = before["generation"] + lives
        self._wait(lambda: self._facts()["generation"] >= wanted, "it lives on")

    def _await_newborn(self) -> None:
        self._wait(lambda: self._facts()["pid"] is not None, "no new process")

    def _await_back(self) -> None:
        self._wait(lambda: self._facts()["state"] == "ready", "it does not come back")

    def _note_recovery(self) -> None:
        device = self._facts()
        recovery = device["recovery"] or {}
        if device["generation"] > self._seen and None not in recovery.values():
            self._seen = device["generation"]
            if recovery:
                self.recoveries.append(recovery)

    def _facts(self) -> dict[str, Any]:
        return self._node.device(self._device)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        """Raises AssertionError."""
        try:
            self._node.wait(condition, f"{what}, after {self.last}", _PATIENCE_S)
        except AssertionError as error:
            phase = self._facts()["phase"]
            told = f"{error}\nit is in {phase}; open: {self._ledger.open}"
            raise AssertionError(told) from None


Blow = Callable[[Breaker], None]


def _injected(kind: str) -> Blow:
    return lambda breaker: breaker.inject(kind)


FAULTS: dict[str, Blow] = {
    **{kind: _injected(kind) for kind in KINDS},
    "xid:N": _injected("xid:31"),
}
"""By kind, as `cortexctl fault list` has them."""

ROUND: tuple[Blow, ...] = (
    *FAULTS.values(),
    Breaker.kill,
    Breaker.stop,
    Breaker.kill_again,
    Breaker.kill_worker,
    Breaker.kill_zygote,
)
"""Everything that can be done to a node, once."""
