"""The node's facts as its HTTP side shows them.

Pure; front-end worker. Every document is cut from the facts document of the supervisor,
so that HTTP, tables and `--json` can't disagree.

Invariant: folders, causes and the host's name stay inside (S51).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

Facts = Mapping[str, Any]

HEALTHY = ("ready", "impaired")
_NODE_KEYS = ("schema", "node", "boot_id", "residency", "state", "time_s", "started_s")
_INSIDE = ("folder",)
_FAULT_KEYS = ("class", "type", "time_s")


def etag(facts: Facts) -> str:
    """Moves when a load or unload begins or ends, never with traffic."""
    return f'"{facts["boot_id"]}.{facts["residency"]}"'


def bare_tag(tag: str) -> str:
    """The version in a tag, without what HTTP puts around it."""
    return tag.strip().removeprefix("W/").strip('"')


def matches(if_none_match: str | None, tag: str) -> bool:
    if not if_none_match:
        return False
    given = [bare_tag(part) for part in if_none_match.split(",")]
    return bare_tag(tag) in given or "*" in given


def models(facts: Facts) -> dict[str, Any]:
    return {**_node(facts), "models": [model(fact) for fact in facts["models"]]}


def model(fact: Facts) -> dict[str, Any]:
    shown = {key: value for key, value in fact.items() if key not in _INSIDE}
    shown["source"] = _source(fact.get("source"))
    wire = fact.get("error")
    shown["error"] = {"code": wire[0], "message": wire[1]} if wire else None
    return shown


def health(facts: Facts) -> dict[str, Any]:
    devices = [
        {key: device.get(key) for key in ("device", "state", "reason", "generation")}
        for device in facts["devices"]
    ]
    rows = [
        {key: fact.get(key) for key in ("id", "status", "servable", "percent")}
        for fact in facts["models"]
    ]
    lines = facts.get("health", [])
    return {**_node(facts), "health": lines, "devices": devices, "models": rows}


def discovery(facts: Facts) -> dict[str, Any]:
    host = {k: v for k, v in facts.get("host", {}).items() if k != "hostname"}
    return {
        **_node(facts),
        "version": facts["version"],
        "listen": facts.get("listen", {}),
        "host": host,
        "devices": [_device(fact) for fact in facts["devices"]],
    }


def _device(fact: Facts) -> dict[str, Any]:
    """A fault by its class and type; its causes may name files."""
    fault = fact.get("last_fault")
    shown = {key: fault.get(key) for key in _FAULT_KEYS} if fault else None
    return {**fact, "last_fault": shown}


def version(facts: Facts) -> dict[str, Any]:
    return {"node": facts["node"], **facts["version"]}


def capabilities(fact: Facts) -> dict[str, Any]:
    keys = ("id", "status", "servable", "context", "architecture", "dtype", "quant")
    shown = {key: fact.get(key) for key in (*keys, "digest")}
    return {**shown, "capabilities": fact.get("capabilities", {})}


def openai_models(facts: Facts) -> dict[str, Any]:
    """Every known model, whatever its state: an entry never comes and goes (S33)."""
    data = [openai_model(fact, facts) for fact in facts["models"]]
    return {"object": "list", "data": data}


def openai_model(fact: Facts, facts: Facts) -> dict[str, Any]:
    return {
        "id": fact["id"],
        "object": "model",
        "created": int(facts["started_s"]),
        "owned_by": "cortex",
        "status": fact["status"],
        "context": fact.get("context"),
    }


def _node(facts: Facts) -> dict[str, Any]:
    return {key: facts.get(key) for key in _NODE_KEYS}


def _source(source: object) -> object:
    """A file's name without the folders that lead to it."""
    if isinstance(source, str) and "/" in source:
        return PurePath(source).name
    return source
