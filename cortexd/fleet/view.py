"""From the nodes' records to the snapshot that workers route by. Pure.

Fleet process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cortexd import snapshot
from cortexd.config import Catalogue
from cortexd.fleet.poller import NodeRecord
from cortexd.fleet.reading import ModelFact
from cortexd.snapshot import ModelView, NodeView, Place, Snapshot

_LEAVING = ("draining", "stopping")

Held = dict[str, list[tuple[NodeRecord, ModelFact]]]


def snapshot_of(
    records: Sequence[NodeRecord],
    catalogue: Catalogue,
    *,
    number: int,
    created_s: float,
) -> Snapshot:
    held = holders(records)
    aliases = {profile.id: profile.aliases for profile in catalogue.models}
    ids = sorted({*aliases, *held})
    return snapshot.of(
        number=number,
        complete=all(record.standing.state != "unknown" for record in records),
        created_s=created_s,
        nodes=[_node(record) for record in records],
        models=[_model(i, held.get(i, []), aliases.get(i, ())) for i in ids],
    )


def holders(records: Iterable[NodeRecord]) -> Held:
    """Who knows a model, by its id."""
    held: Held = {}
    for record in records:
        for fact in record.reading.routes if record.reading else ():
            held.setdefault(fact.id, []).append((record, fact))
    return held


def _node(record: NodeRecord) -> NodeView:
    reading = record.reading
    return NodeView(
        name=record.name,
        endpoint=str(record.endpoint),
        standing=record.standing.state,
        accepting=reading is not None and reading.state not in _LEAVING,
        seen=reading is not None and reading.told,
    )


def _model(
    model_id: str,
    held: list[tuple[NodeRecord, ModelFact]],
    aliases: tuple[str, ...],
) -> ModelView:
    windows = [fact.context for _, fact in held if fact.context]
    can = {name for _, fact in held for name, yes in fact.capabilities.items() if yes}
    return ModelView(
        id=model_id,
        places=tuple(_place(record, fact) for record, fact in held),
        aliases=aliases,
        context=min(windows, default=None),
        capabilities=tuple(sorted(can)),
    )


def _place(record: NodeRecord, fact: ModelFact) -> Place:
    loads = record.reading.loads if record.reading else {}
    servable = fact.servable
    return Place(
        node=record.name,
        status=fact.status,
        servable=servable is None or servable.ok,  # not knowing counts as servable
        reason=(servable and servable.reason) or "",
        percent=fact.percent,
        eta_s=fact.eta_s,
        load=sum([loads.get(device, 0) for device in fact.devices]),
    )
