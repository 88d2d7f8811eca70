"""The gateway's facts document: the only builder of what operators see of it. Pure.

`of_fleet` is made in the fleet process from the nodes' records, `of_gateway` in the
supervisor, which adds what only it knows. cortexctl's tables and `--json`, the control
socket and the metrics process all take theirs from here.

Invariant: numbers are raw, with the unit in the key; `*_s` are unix time.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ipc
from cortexd.config import Catalogue
from cortexd.fleet.poller import NodeRecord
from cortexd.nodes.endpoint import seen_from_here
from cortexd.router import Serve, decide
from cortexd.snapshot import Snapshot
from cortexd.standing import gateway_state
from ipc.errors import TABLE

Facts = dict[str, Any]
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Own:
    """What the supervisor knows. `away` are children that don't run at the moment."""

    gateway: str
    started_s: float
    time_s: float
    is_stopping: bool = False
    listen: dict[str, str] = field(default_factory=dict)
    away: tuple[str, ...] = ()


def of_fleet(
    records: Sequence[NodeRecord], catalogue: Catalogue, snapshot: Snapshot
) -> Facts:
    return {
        "state": gateway_state(snapshot),
        "nodes": [_node(record) for record in records],
        "devices": [device for record in records for device in _devices(record)],
        "models": _models(records, catalogue, snapshot),
        "health": _health(records),
    }


def of_gateway(fleet: Facts, own: Own) -> Facts:
    """`fleet` is empty until the fleet process has spoken."""
    state = "stopping" if own.is_stopping else fleet.get("state", "starting")
    if state == "ready" and own.away:
        state = "impaired"
    away = [_line("warning", "CX-INTERNAL", f"{name} restarts") for name in own.away]
    return {
        "schema": SCHEMA,
        "gateway": own.gateway,
        "state": state,
        "time_s": own.time_s,
        "started_s": own.started_s,
        "version": {"cortex": ipc.__version__, "python": platform.python_version()},
        "listen": own.listen,
        "nodes": fleet.get("nodes", []),
        "devices": fleet.get("devices", []),
        "models": fleet.get("models", []),
        "health": [*away, *fleet.get("health", [])],
    }


def _node(record: NodeRecord) -> Facts:
    reading = record.reading
    listen = reading.listen if reading else {}
    seen = {what: seen_from_here(at, record.endpoint) for what, at in listen.items()}
    return {
        "name": record.name,
        "endpoint": str(record.endpoint),
        "state": record.standing.state,
        "since_s": record.standing.since_s,
        "misses": record.standing.misses,
        "reason": record.reason,
        "node_state": reading.state if reading else None,
        "version": reading.version if reading else None,
        "latency_ms": record.latency_ms,
        "listen": seen,
    }


def _devices(record: NodeRecord) -> list[Facts]:
    reading = record.reading
    return [{**d, "node": record.name} for d in reading.devices] if reading else []


def _models(
    records: Sequence[NodeRecord], catalogue: Catalogue, snapshot: Snapshot
) -> list[Facts]:
    locations: dict[str, list[Facts]] = {m.id: [] for m in catalogue.models}
    for record in records:
        for fact in record.reading.models if record.reading else ():
            place = {**fact, "node": record.name}
            locations.setdefault(str(place.pop("id")), []).append(place)
    return [
        {
            "id": model_id,
            "aliases": list(snapshot.models[model_id].aliases),
            "context": snapshot.models[model_id].context,
            "servable": _servable(snapshot, model_id),
            "locations": locations[model_id],
        }
        for model_id in sorted(locations)
    ]


def _servable(snapshot: Snapshot, model_id: str) -> Facts:
    """By the router itself, so that operators and clients can't be told two things."""
    decision = decide(snapshot, model_id)
    if isinstance(decision, Serve):
        return {"ok": True, "reason": ""}
    return {"ok": False, "reason": decision.error.message}


def _health(records: Sequence[NodeRecord]) -> list[Facts]:
    if not records:
        words = "no node is configured: add [[neurons]] to cortex.toml"
        return [_line("error", "CX-NODE-NONE", words)]
    lines = []
    for record in records:
        if record.standing.state == "down":
            words = f"node {record.name} is down: {record.reason}"
            lines.append(_line("error", "CX-NODE-NONE", words))
        elif record.reading:
            lines += [_of_node(record.name, line) for line in record.reading.health]
    return lines


def _of_node(node: str, line: Facts) -> Facts:
    return {**line, "text": f"node {node}: {line.get('text', '')}"}


def _line(level: str, ref: str, text: str) -> Facts:
    row = next(row for row in TABLE.values() if row.ref == ref)
    return {"level": level, "code": ref, "text": text, "next": row.next_command}
