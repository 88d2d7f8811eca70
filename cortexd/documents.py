"""The documents that a worker answers from, made once per snapshot. Pure.

Invariant: an answer is bytes that lie ready: load elsewhere can't delay it (S24). What
the gateway has once listed stays listed while some node may come back with it (S33).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from cortexd.snapshot import ModelView, Place, Snapshot
from cortexd.standing import gateway_state

_OWNER = "cortex"


@dataclass(frozen=True, slots=True)
class Documents:
    """`models` are the entries by the name that a client uses."""

    health: bytes
    is_healthy: bool
    model_list: bytes
    models: dict[str, bytes]


def of(snapshot: Snapshot, gateway: str) -> Documents:
    entries = {model.id: _entry(snapshot, model) for model in snapshot.models.values()}
    for alias, model_id in snapshot.aliases.items():
        entries[alias] = {**entries[model_id], "id": alias, "root": model_id}
    health = _health(snapshot, gateway)
    listed = {"object": "list", "data": [entries[name] for name in sorted(entries)]}
    return Documents(
        health=msgspec.json.encode(health),
        is_healthy=health["nodes"]["up"] > 0,
        model_list=msgspec.json.encode(listed),
        models={name: msgspec.json.encode(entry) for name, entry in entries.items()},
    )


def _health(snapshot: Snapshot, gateway: str) -> dict[str, Any]:
    standings = [node.standing for node in snapshot.nodes.values()]
    servable = [m for m in snapshot.models.values() if _is_loaded(snapshot, m)]
    return {
        "status": gateway_state(snapshot),
        "gateway": gateway,
        "nodes": {"up": standings.count("up"), "total": len(standings)},
        "models": {"servable": len(servable), "total": len(snapshot.models)},
    }


def _entry(snapshot: Snapshot, model: ModelView) -> dict[str, Any]:
    """The OpenAI shape, and what we know beyond it."""
    entry: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "created": int(snapshot.created_s),
        "owned_by": _OWNER,
        "loaded": _is_loaded(snapshot, model),
        "locations": [_location(snapshot, place) for place in model.places],
        "capabilities": list(model.capabilities),
    }
    return entry | ({"max_model_len": model.context} if model.context else {})


def _location(snapshot: Snapshot, place: Place) -> dict[str, Any]:
    up = snapshot.is_up(place.node)
    return {"node": place.node, "status": place.status if up else "unreachable"}


def _is_loaded(snapshot: Snapshot, model: ModelView) -> bool:
    return any(
        place.status == "loaded" and place.servable and snapshot.is_up(place.node)
        for place in model.places
    )
