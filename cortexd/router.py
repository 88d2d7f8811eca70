"""Which node serves a request for this model? Pure: literals in, a decision out.

Gateway worker. The order of the questions is the order of the code:

 1  is the name known?        no: 404, or 503 while a node has yet to say what it holds
 2  is it servable somewhere? the least loaded of those nodes serves it
    needs it no device?       any node that knows the model does, if none has it loaded
 3  is it on its way there?   wait: loading (percent, eta) or recovering
 4  otherwise                 refuse with the reason; always 503, it may come back

Invariant: 404 only when every node has told what it holds and none knows the name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cortexd.snapshot import LOADING, RECOVERING, ModelView, Place, Snapshot
from ipc.errors import ServiceError, error_for

_LONGEST_RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class Serve:
    """`model` is the id that the node knows it by."""

    node: str
    endpoint: str
    model: str


@dataclass(frozen=True, slots=True)
class Wait:
    """It will be servable by itself; `error` says when to ask again."""

    error: ServiceError


@dataclass(frozen=True, slots=True)
class Reject:
    error: ServiceError


Decision = Serve | Wait | Reject


def resolve(snapshot: Snapshot, name: str) -> str | None:
    """The id behind a name that a client uses; None when nobody knows it."""
    if name in snapshot.models:
        return name
    return snapshot.aliases.get(name)


def decide(
    snapshot: Snapshot,
    name: str,
    *,
    on_device: bool = True,
    without: Collection[str] = (),
    in_flight: Mapping[str, int] | None = None,
) -> Decision:
    """`without` are nodes that were tried already, `in_flight` our own per node. What
    is not for a device is served wherever the model is known, if need be."""
    model_id = resolve(snapshot, name)
    if model_id is None:
        return Reject(_unknown(snapshot, name))
    model = snapshot.models[model_id]
    reachable = [p for p in model.places if snapshot.is_up(p.node)]
    open_ = [p for p in reachable if snapshot.nodes[p.node].accepting]
    untried = [p for p in open_ if p.node not in without]
    fit = [p for p in untried if p.status == "loaded" and p.servable]
    if not on_device:
        fit = fit or untried
    if fit:
        chosen = _least_loaded(fit, in_flight or {})
        return Serve(chosen.node, snapshot.nodes[chosen.node].endpoint, model_id)
    return _on_its_way(name, open_) or Reject(_refusal(name, model, reachable, open_))


def _least_loaded(places: list[Place], in_flight: Mapping[str, int]) -> Place:
    """Ours are added to what the node said: its figure is as old as the last poll."""
    return min(places, key=lambda p: (p.load + in_flight.get(p.node, 0), p.node))


def _on_its_way(name: str, places: list[Place]) -> Wait | None:
    if any(place.status in RECOVERING for place in places):
        words = f"the device of model {name} is coming back"
        return Wait(error_for("model_recovering", words))
    loading = [place for place in places if place.status in LOADING]
    if not loading:
        return None
    ahead = max(loading, key=lambda place: place.percent or 0)
    retry_s = min(max(1.0, ahead.eta_s), _LONGEST_RETRY_S) if ahead.eta_s else None
    percent = ahead.percent or 0
    return Wait(
        error_for(
            "model_loading",
            f"model {name} is being loaded: {percent:.0f} %",
            retry_after_s=retry_s,
            fields={"percent": percent, "eta_s": ahead.eta_s},
        )
    )


def _refusal(
    name: str, model: ModelView, reachable: list[Place], open_: list[Place]
) -> ServiceError:
    if reachable and not open_:
        return error_for("shutting_down", f"the node of model {name} is stopping")
    if not model.places:
        words = f"model {name} is in the catalogue, but no node has it"
    elif not open_:
        words = f"no node that has model {name} is reachable"
    else:
        words = f"model {name}: {_why(open_)}"
    return error_for("no_healthy_node", words)


def _why(places: list[Place]) -> str:
    """The reason of the place that is nearest to serving."""
    loaded = [place for place in places if place.status == "loaded"]
    if not loaded:
        return f"it is {places[0].status}"
    if all(place.servable for place in loaded):
        return "its node does not answer"
    return next(p.reason for p in loaded if not p.servable) or "it is not servable now"


def _unknown(snapshot: Snapshot, name: str) -> ServiceError:
    if snapshot.number == 0:
        return error_for("no_healthy_node", "the gateway has yet to see its nodes")
    if all(node.seen for node in snapshot.nodes.values()):
        words = f"model {name} does not exist; GET /v1/models lists what does"
        return error_for("model_not_found", words, param="model")
    words = f"no reachable node has model {name}, and not every node has been reached"
    return error_for("no_healthy_node", words, param="model")
