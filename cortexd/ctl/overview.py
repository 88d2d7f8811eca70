"""One picture of what the daemons of this host answered. Pure.

Used by cortexctl. A node's facts document comes from its supervisor, the fleet's from
the gateway's; where both know a node, the node itself is believed, since the gateway's
copy is a poll old. Tables and `--json` are both made from this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Facts = dict[str, Any]
SCHEMA = 1
_HERE = ("localhost", "::1")


@dataclass(frozen=True, slots=True)
class Overview:
    """What answered; at least one of the two."""

    node: Facts | None = None
    gateway: Facts | None = None

    @property
    def answered(self) -> list[Facts]:
        return [facts for facts in (self.gateway, self.node) if facts]


def document(overview: Overview) -> Facts:
    """`cortexctl status --json`."""
    return {
        "schema": SCHEMA,
        "ready": is_ready(overview),
        "node": overview.node,
        "gateway": overview.gateway,
        "health": health(overview),
    }


def is_ready(overview: Overview) -> bool:
    """Everything that answered is ready and reports no error; warnings are allowed."""
    states = [facts.get("state") for facts in overview.answered]
    errors = [line for line in health(overview) if line.get("level") == "error"]
    return all(state == "ready" for state in states) and not errors


def health(overview: Overview) -> list[Facts]:
    """Each health line once, errors first."""
    lines = [line for facts in overview.answered for line in facts.get("health", ())]
    once = {(line.get("code"), line.get("text")): line for line in lines}
    return sorted(once.values(), key=lambda line: line.get("level") != "error")


def nodes(overview: Overview) -> list[Facts]:
    """The fleet as the gateway sees it."""
    return list((overview.gateway or {}).get("nodes", ()))


def devices(overview: Overview) -> list[Facts]:
    """The node's devices, then those of the fleet's others; each names its node."""
    own_name = local_name(overview)
    node = overview.node or {}
    own = [{"node": own_name, **device} for device in node.get("devices", ())]
    fleet = (overview.gateway or {}).get("devices", ())
    return own + [device for device in fleet if device.get("node") != own_name]


def models(overview: Overview) -> list[Facts]:
    """One row per model and node; a model that no node has shows with node ""."""
    own_name = local_name(overview)
    node = overview.node or {}
    own = [{"node": own_name, **model} for model in node.get("models", ())]
    held = {model["id"] for model in own}
    rows = []
    for model in (overview.gateway or {}).get("models", ()):
        elsewhere = [
            place for place in model.get("locations", ()) if place["node"] != own_name
        ]
        rows += [{**place, "id": model["id"]} for place in elsewhere]
        if not elsewhere and model["id"] not in held:
            rows.append({"id": model["id"], "node": "", "status": "unloaded"})
    return own + rows


def local_name(overview: Overview) -> str:
    """What the gateway calls the node of this host; without a gateway, its own name."""
    node = overview.node or {}
    listen = str((node.get("listen") or {}).get("http", ""))
    port = listen.rpartition(":")[2]
    for known in nodes(overview):
        host, known_port = _host_and_port(str(known.get("endpoint", "")))
        here = host in _HERE or host.startswith("127.") or host == node.get("node")
        if node and here and known_port == port:
            return str(known["name"])
    return str(node.get("node", ""))


def _host_and_port(endpoint: str) -> tuple[str, str]:
    """By hand: urllib.parse would cost a twentieth of the whole run."""
    address = endpoint.partition("://")[2].partition("/")[0]
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port
