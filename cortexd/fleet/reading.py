"""What a node said in one poll, checked. Pure.

Fleet process. A node may be newer or older than we are: unknown fields and states are
kept and tolerated. But what we route by must have its type, else the poll is missed.

    /health     state, health lines, devices and models in short, always fresh
    /models     the whole model facts; 304 while the node's residency stands still
    /discovery  devices with what runs and waits on them, versions, own addresses

Invariant: a Reading is whole; there is none of half an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from cortexd.nodes.http import NodeError

Facts = dict[str, Any]


class BadAnswer(NodeError):
    """The node answered, but not as a node does."""


class Servable(msgspec.Struct, frozen=True):
    ok: bool = True
    reason: str | None = None


class ModelFact(msgspec.Struct, frozen=True):
    """The part of a model's facts that is routed by."""

    id: str
    status: str
    servable: Servable | None = None
    percent: float | None = None
    eta_s: float | None = None
    context: int | None = None
    devices: tuple[str, ...] = ()
    capabilities: dict[str, bool] = {}


class DeviceFact(msgspec.Struct, frozen=True):
    device: str
    running: int = 0
    waiting: int = 0


class _Health(msgspec.Struct):
    state: str
    health: list[Facts] = []
    models: list[Facts] = []


class _Models(msgspec.Struct):
    models: list[Facts]


class _Discovery(msgspec.Struct):
    devices: list[Facts] = []
    version: Facts = {}
    listen: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Reading:
    """`models` and `devices` are the node's own facts, `routes` and `loads` what we
    read out of them; `loads` counts what runs and waits per device. `told`: it has said
    which models it knows."""

    state: str
    told: bool = False
    etag: str = ""
    health: tuple[Facts, ...] = ()
    models: tuple[Facts, ...] = ()
    devices: tuple[Facts, ...] = ()
    version: Facts = field(default_factory=dict)
    listen: dict[str, str] = field(default_factory=dict)
    routes: tuple[ModelFact, ...] = ()
    loads: dict[str, int] = field(default_factory=dict)


STARTING = Reading(state="starting")
"""The node's front end is there, the rest is not."""


def read(
    health: bytes, models: bytes | None, discovery: bytes, *, etag: str, old: Reading
) -> Reading:
    """`models` None: not modified since `old`. Raises BadAnswer."""
    brief = _decode(health, _Health)
    found = _decode(discovery, _Discovery)
    whole = old.models if models is None else _decode(models, _Models).models
    facts = _freshened(whole, brief.models)
    devices = _convert(found.devices, tuple[DeviceFact, ...])
    return Reading(
        state=brief.state,
        told=True,
        etag=etag,
        health=tuple(brief.health),
        models=facts,
        devices=tuple(found.devices),
        version=found.version,
        listen=found.listen,
        routes=_convert(facts, tuple[ModelFact, ...]),
        loads={d.device: d.running + d.waiting for d in devices},
    )


def starting(old: Reading) -> Reading:
    """It answers and says that it is not ready to say more."""
    return replace(old, state=STARTING.state, etag="")


def _freshened(
    whole: tuple[Facts, ...] | list[Facts], brief: list[Facts]
) -> tuple[Facts, ...]:
    """The facts with what /health said of them: it is never a poll old."""
    fresh = {row.get("id"): row for row in brief}
    return tuple({**fact, **fresh.get(fact.get("id"), {})} for fact in whole)


def _decode(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadAnswer("the node's answer has no such shape") from error


def _convert(facts: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(facts, kind)
    except msgspec.ValidationError as error:
        raise BadAnswer("the node's facts have no such shape") from error
