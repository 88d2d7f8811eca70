"""Crash drill of the devices: SIGKILL them under load, and count what went wrong.

    python -m tests.drills.devices --kills 100 --seed 1 --clients 32

A real node with two workers and two fake devices, a model on each. Devices are killed
at random moments while they serve, some again while they come up; meanwhile clients
talk (`chatter` says how an answer is judged). Afterwards, with everybody gone:

    leaks    open descriptors of supervisor, zygote and workers beyond those before,
             zombies, names in /dev/shm, and memory of the supervisor
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.drills.chatter import Chatter
from tests.harness import Node, title_of

MODELS = ("left", "right")
LONG_LIVED = ("supervisor", "zygote", "worker 1", "worker 2")
MOST_GROWTH_BYTES = 8 << 20
_SETTLE_S = 10.0
_WARM_UP_KILLS = 4
_EARLY_SHARE = 0.25
_BAD = ("mixed", "broken", "hung")


@dataclass
class Outcome:
    """What a drill saw; `bad` must be empty."""

    kills: int = 0
    early_kills: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    growth_bytes: int = 0
    fds: dict[str, tuple[int, int]] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    @property
    def bad(self) -> list[str]:
        answers = [
            f"{self.answers[kind]} {kind}" for kind in _BAD if self.answers[kind]
        ]
        return answers + self.leaks

    def __str__(self) -> str:
        kinds = ("complete", "refused", "cut", *_BAD)
        answers = ", ".join(f"{self.answers[kind]} {kind}" for kind in kinds)
        fds = ", ".join(f"{who} {a}->{b}" for who, (a, b) in self.fds.items())
        return (
            f"{self.kills} kills ({self.early_kills} of devices just coming up): "
            f"{answers}; longest {self.longest_s:.2f} s\n"
            f"descriptors: {fds}; supervisor {self.growth_bytes >> 10:+} KiB; "
            f"leaks: {'; '.join(self.leaks) or 'none'}"
        )


@dataclass(frozen=True)
class Standing:
    """What the long-lived processes hold while nothing happens."""

    fds: dict[str, int]
    zombies: int
    shm: frozenset[str]
    supervisor_bytes: int


class Killer:
    """Kills devices one after the other, each time one that can come back."""

    def __init__(self, node: Node, rng: random.Random, outcome: Outcome) -> None:
        self._node = node
        self._rng = rng
        self._outcome = outcome
        self._names = [device["device"] for device in node.facts()["devices"]]
        self._tokens = dict.fromkeys(self._names, 0)
        self._dead: dict[str, int] = {}

    def kill(self) -> None:
        """One that served, or one more early death right after it."""
        name = self._rng.choice(self._names)
        self._await_productive(name)
        time.sleep(self._rng.uniform(0, 0.2))
        self._kill(name)
        if self._rng.random() < _EARLY_SHARE:
            self._await_newborn(name)
            time.sleep(self._rng.uniform(0, 0.02))
            self._kill(name)
            self._outcome.early_kills += 1

    def _kill(self, name: str) -> None:
        device = self._node.device(name)
        self._tokens[name] = device["emitted_tokens_total"]
        pid: int = device["pid"]
        os.kill(pid, signal.SIGKILL)
        self._dead[name] = pid
        self._outcome.kills += 1

    def _await_productive(self, name: str) -> None:
        """Lives without a token are counted against a device, and that is not the
        question here."""

        def is_productive() -> bool:
            device = self._node.device(name)
            has_spoken = device["emitted_tokens_total"] > self._tokens[name]
            return self._is_new(device) and device["state"] == "ready" and has_spoken

        self._node.wait(is_productive, f"{name} does not come back")

    def _await_newborn(self, name: str) -> None:
        self._node.wait(
            lambda: self._is_new(self._node.device(name)), f"{name} is not started"
        )

    def _is_new(self, device: dict[str, Any]) -> bool:
        """Not the one just killed, whose death is still on its way."""
        return device["pid"] not in (None, self._dead.get(device["device"]))


def run(kills: int, seed: int, clients: int, folder: Path) -> Outcome:
    """At least so many kills."""
    rng = random.Random(seed)
    outcome, warming = Outcome(), Outcome()
    with start(folder) as node:
        _talk_and_kill(node, rng, warming, _WARM_UP_KILLS, clients, seed=-seed)
        before = settle(node, None)
        _talk_and_kill(node, rng, outcome, kills, clients, seed=seed)
        after = settle(node, before)
    _compare(outcome, before, after)
    outcome.leaks += [f"warm-up: {bad}" for bad in warming.bad]
    outcome.examples += warming.examples
    return outcome


def start(folder: Path) -> Node:
    listed = [{"id": name, "source": "fake"} for name in MODELS]
    return Node(
        folder,
        devices=2,
        workers=2,
        models=listed,
        config={"models": {"default": []}, "limits": {"max_queue": 1000}},
    )


def _talk_and_kill(
    node: Node,
    rng: random.Random,
    outcome: Outcome,
    kills: int,
    clients: int,
    seed: int,
) -> None:
    for model, device in zip(MODELS, node.facts()["devices"], strict=True):
        node.control("load", model_id=model, devices=[device["device"]])
    chatter = Chatter(node.http, MODELS, clients, seed)
    chatter.start()
    killer = Killer(node, rng, outcome)
    while outcome.kills < kills:
        killer.kill()
    node.wait(lambda: _all_loaded(node), "a model does not come back")
    chatter.stop()
    outcome.answers = chatter.seen
    outcome.longest_s = chatter.longest_s
    outcome.examples += chatter.examples


def _all_loaded(node: Node) -> bool:
    return all(node.model(model)["status"] == "loaded" for model in MODELS)


def settle(node: Node, wanted: Standing | None) -> Standing:
    """What is held when everybody has gone: as in `wanted`, or when time is up."""
    end_s = time.monotonic() + _SETTLE_S
    last = _standing(node)
    while time.monotonic() < end_s:
        time.sleep(0.5)
        now = _standing(node)
        rests = last.fds == now.fds and not now.zombies
        if rests and (wanted is None or _holds_no_more(now, wanted)):
            return now
        last = now
    return last


def _holds_no_more(now: Standing, wanted: Standing) -> bool:
    return now.fds == wanted.fds and now.shm <= wanted.shm


def _standing(node: Node) -> Standing:
    supervisor = psutil.Process(node.pid)
    family = [supervisor, *supervisor.children(recursive=True)]
    named = {title_of(p).removeprefix("neurond: "): p for p in family}
    return Standing(
        fds={name: named[name].num_fds() for name in LONG_LIVED},
        zombies=sum(_is_zombie(process) for process in family),
        shm=frozenset(name for name in os.listdir("/dev/shm") if "cortex" in name),
        supervisor_bytes=supervisor.memory_info().rss,
    )


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _compare(outcome: Outcome, before: Standing, after: Standing) -> None:
    outcome.fds = {name: (before.fds[name], after.fds[name]) for name in LONG_LIVED}
    outcome.growth_bytes = after.supervisor_bytes - before.supervisor_bytes
    outcome.leaks += [
        f"{name} holds {now} descriptors, not {then}"
        for name, (then, now) in outcome.fds.items()
        if now != then
    ]
    if after.zombies:
        outcome.leaks.append(f"{after.zombies} zombies")
    if after.shm - before.shm:
        outcome.leaks.append(f"/dev/shm: {sorted(after.shm - before.shm)}")
    if outcome.growth_bytes > MOST_GROWTH_BYTES:
        outcome.leaks.append(f"the supervisor grew by {outcome.growth_bytes} bytes")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills.devices")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(options.kills, options.seed, options.clients, Path(folder))
    print(outcome)
    for example in outcome.examples[:5]:
        print(example[:2000], file=sys.stderr)
    return 1 if outcome.bad else 0


if __name__ == "__main__":
    sys.exit(main())
