"""What a gateway knows of its fleet at one moment, as far as routing needs it.

Made by the fleet process, pushed whole to every worker, never changed: a worker that
holds one can decide without asking anybody, and goes on with it while fleet restarts.

    Snapshot ─▶ nodes: name ─▶ NodeView        up, down or unknown; accepting or not
             └▶ models: id ─▶ ModelView ─▶ places: one per node that knows the model

Invariant: `parse(snapshot.plain()) == snapshot`; unknown keys of a newer fleet are
dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

Standing = Literal["unknown", "up", "down"]

LOADING = ("fetching", "converting", "loading")
RECOVERING = ("recovering", "poisoned")


@dataclass(frozen=True, slots=True)
class NodeView:
    """`seen`: it has told its models at least once, so that they are known by name."""

    name: str
    endpoint: str
    standing: Standing = "unknown"
    accepting: bool = True
    seen: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A model on a node; `load` counts what runs and waits on its devices there."""

    node: str
    status: str
    servable: bool = True
    reason: str = ""
    percent: float | None = None
    eta_s: float | None = None
    load: int = 0


@dataclass(frozen=True, slots=True)
class ModelView:
    """`context` is the smallest window among its places; None while nobody knows."""

    id: str
    places: tuple[Place, ...] = ()
    aliases: tuple[str, ...] = ()
    context: int | None = None
    capabilities: tuple[str, ...] = ()


def _frozen(entries: dict[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(entries)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`number` rises with each of one fleet life; 0 = nothing has been heard yet.

    `complete`: every node has either answered or been given up on.
    """

    number: int = 0
    complete: bool = False
    created_s: float = 0.0
    nodes: Mapping[str, NodeView] = field(default_factory=lambda: _frozen({}))
    models: Mapping[str, ModelView] = field(default_factory=lambda: _frozen({}))
    aliases: Mapping[str, str] = field(default_factory=lambda: _frozen({}))

    def plain(self) -> dict[str, Any]:
        """Plain values for a message."""
        return {
            "number": self.number,
            "complete": self.complete,
            "created_s": self.created_s,
            "nodes": [asdict(node) for node in self.nodes.values()],
            "models": [asdict(model) for model in self.models.values()],
        }

    def is_up(self, node: str) -> bool:
        view = self.nodes.get(node)
        return view is not None and view.standing == "up"


EMPTY = Snapshot()


def of(  # noqa: PLR0913  the parts of a snapshot
    *,
    number: int,
    complete: bool,
    created_s: float,
    nodes: list[NodeView],
    models: list[ModelView],
) -> Snapshot:
    """Indexed by name; a model's own id wins over another's alias."""
    by_id = {model.id: model for model in models}
    aliases = {
        alias: model.id
        for model in models
        for alias in model.aliases
        if alias not in by_id
    }
    return Snapshot(
        number,
        complete,
        created_s,
        _frozen({node.name: node for node in nodes}),
        _frozen(by_id),
        _frozen(aliases),
    )


def parse(plain: Mapping[str, Any]) -> Snapshot:
    """Inverse of `plain`."""
    return of(
        number=plain["number"],
        complete=plain["complete"],
        created_s=plain["created_s"],
        nodes=[NodeView(**_known(NodeView, entry)) for entry in plain["nodes"]],
        models=[_model(entry) for entry in plain["models"]],
    )


def _model(entry: Mapping[str, Any]) -> ModelView:
    known = _known(ModelView, entry)
    places = tuple(Place(**_known(Place, place)) for place in entry["places"])
    texts = {key: tuple(known.get(key, ())) for key in ("aliases", "capabilities")}
    return ModelView(**{**known, **texts, "places": places})


def _known(cls: type[Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    return {key: value for key, value in entry.items() if key in names}
