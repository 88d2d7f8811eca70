"""When is a freshly started pair of daemons ready to chat? Pure.

Used by `cortex run`, which shows the facts of the node while it waits and tells how to
chat once the gateway can serve a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ipc.errors import from_wire

Facts = dict[str, Any]
_MOVING = ("fetching", "converting", "loading", "recovering")
_BROKEN = ("failed", "poisoned")


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not yet; `model` is what is being worked on, if a model is."""

    model: Facts | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The gateway serves; `model` is one that answers, "" if the node has none."""

    model: str = ""
    failures: tuple[str, ...] = ()


def judge(node: Facts | None, gateway: Facts | None) -> Waiting | Ready:
    """Ready when nothing moves any more and the gateway sees what the node holds."""
    models = (node or {}).get("models", ())
    moving = [model for model in models if model.get("status") in _MOVING]
    if moving:
        return Waiting(min(moving, key=lambda model: model.get("percent") or 0))
    if node is None or gateway is None or node.get("state") == "starting":
        return Waiting()
    failures = tuple(failure(m) for m in models if m.get("status") in _BROKEN)
    loaded = [str(m["id"]) for m in models if m.get("status") == "loaded"]
    served = _served(gateway)
    seen = [model for model in loaded if model in served]
    if loaded and not seen:
        return Waiting()
    return Ready(seen[0] if seen else "", failures)


def failure(model: Facts) -> str:
    """Why a model does not serve, in one line with its next command."""
    if wire := model.get("error"):
        error = from_wire(wire)
        why, follow = f"{error.row.ref}: {error.message}", error.row.next_command
    else:
        why, follow = str(model.get("reason") or "no reason given"), "cortexctl models"
    return f"{model.get('id')} {model.get('status')}: {why}; next: {follow}"


def _served(gateway: Facts) -> set[str]:
    """Ids that the gateway would route to some node now."""
    return {
        str(model["id"])
        for model in gateway.get("models", ())
        if any(place.get("status") == "loaded" for place in model.get("locations", ()))
    }
