"""What the processes of a node and a gateway hold while nobody asks for anything.

    leaks    memory or descriptors or threads that grow from quiet to quiet, names in
             /dev/shm, seats and KV pages that nobody uses and nobody gave back,
             requests without an outcome, processes that were replaced

`take` looks; `leaks` decides, purely.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from tests.harness import Daemon, Node, title_of

MOST_GROWTH_BYTES = 12 << 20
MOST_GROWTH_SHARE = 0.03
MOST_MORE = 2
"""Descriptors, threads."""

MOST_CONNECTIONS = 128
"""Idle ones that one process keeps for later."""

_ENDS = ("finished", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Holding:
    """Of one process; TCP connections, which are pooled, are no part of `fds`."""

    rss_bytes: int
    fds: int
    threads: int
    connections: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """`busy` says what is not at rest although nobody asks; "" when all is."""

    at_s: float
    holdings: dict[str, Holding]
    shm: frozenset[str]
    generations: tuple[int, ...]
    busy: str


def settle(node: Node, daemons: Sequence[Daemon], within_s: float = 15.0) -> Standing:
    """Once everything is at rest, or when time is up."""
    end_s = time.monotonic() + within_s
    while unrest(figures := node.control("metrics")) and time.monotonic() < end_s:
        time.sleep(0.05)
    return take(daemons, figures)


def take(daemons: Sequence[Daemon], figures: dict[str, Any]) -> Standing:
    holdings: dict[str, Holding] = {}
    for daemon in daemons:
        for process in daemon.processes():
            try:
                held = _holding(process)
            except psutil.NoSuchProcess:
                continue
            holdings[f"{title_of(process)} ({process.pid})"] = held
    return Standing(
        at_s=time.monotonic(),
        holdings=holdings,
        shm=frozenset(name for name in os.listdir("/dev/shm") if "cortex" in name),
        generations=tuple(device["generation"] for device in figures["devices"]),
        busy=unrest(figures),
    )


def _holding(process: psutil.Process) -> Holding:
    with process.oneshot():
        sockets = process.net_connections(kind="tcp")
        connections = sum(socket.status != psutil.CONN_LISTEN for socket in sockets)
        return Holding(
            process.memory_info().rss,
            process.num_fds() - connections,
            process.num_threads(),
            connections,
        )


def unrest(figures: dict[str, Any]) -> str:
    """Of the metrics operation's answer."""
    found = []
    for device in figures["devices"]:
        counters, gauges = device["counters"], device["gauges"]
        for name in ("running", "waiting", "kv_used_bytes"):
            if gauges.get(name):
                found.append(f"{device['device']}: {name} {gauges[name]}")
        ended = sum(counters[f"requests_{end}_total"] for end in _ENDS)
        if ended != counters["requests_total"]:
            asked = counters["requests_total"]
            found.append(f"{device['device']}: {asked} requests, {ended} outcomes")
    return "; ".join(found)


def leaks(points: Sequence[Standing]) -> list[str]:
    """Between the first third of the points, in which things warm up, and the last."""
    found = [f"not at rest: {point.busy}" for point in points if point.busy]
    first, last = points[0], points[-1]
    if {point.generations for point in points} != {first.generations}:
        found.append(f"generations {first.generations} -> {last.generations}")
    if last.shm - first.shm:
        found.append(f"/dev/shm: {sorted(last.shm - first.shm)}")
    found += [f"{name} ended" for name in first.holdings.keys() - last.holdings.keys()]
    found += [f"{name} is new" for name in last.holdings.keys() - first.holdings.keys()]
    for name in first.holdings.keys() & last.holdings.keys():
        found += _growth_of(
            name, [p.holdings[name] for p in points if name in p.holdings]
        )
    return sorted(found)


def _growth_of(name: str, held: Sequence[Holding]) -> list[str]:
    third = -(-len(held) // 3)
    warm, late = held[:third], held[-third:]
    found = []
    for what in ("fds", "threads"):
        before = max(getattr(point, what) for point in warm)
        after = min(getattr(point, what) for point in late)
        if after > before + MOST_MORE:
            found.append(f"{name}: {what} {before} -> {after}")
    if held[-1].connections > MOST_CONNECTIONS:
        found.append(f"{name}: {held[-1].connections} connections")
    grown = growth_bytes(held)
    if grown > max(MOST_GROWTH_BYTES, MOST_GROWTH_SHARE * warm[-1].rss_bytes):
        found.append(f"{name}: memory {grown / (1 << 20):+.1f} MiB")
    return found


def growth_bytes(held: Sequence[Holding]) -> int:
    """From the middle third to the last one; 0 where there is no middle."""
    third = len(held) // 3
    if not third:
        return 0

    def size(part: Sequence[Holding]) -> float:
        return statistics.median(point.rss_bytes for point in part)

    return int(size(held[-third:]) - size(held[third:-third] or held[:third]))
