"""May this node serve a request for this model now? If not, which answer is true.

Pure; front-end worker. Decided from the facts that the supervisor pushed last.

Invariant: 404 only for a model that the node doesn't know; every other refusal says
what is going on and when to come back (S14, S25).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ipc.errors import ServiceError, error_for

Fact = Mapping[str, Any]

_STOPPING = ("draining", "stopping")
_LOADING = ("converting", "loading", "fetching")
_RECOVERING = ("recovering", "poisoned")
_LONGEST_RETRY_S = 30.0
_DECISION_S = {"cpu": 10.0}
_DECISION_OTHERWISE_S = 1.0
"""A device decides between two steps; on a CPU a chunk of prefill takes seconds."""
_COMPILE_S = 4.0
"""For a grammar, which has 2 s, behind another one."""
_DOES = {
    "chat": "writes text and gives no embeddings",
    "embedding": "gives embeddings (POST /v1/embeddings) and writes no text",
}


def refusal(
    state: str, model: str, fact: Fact | None, kind: str = "chat"
) -> ServiceError | None:
    """None: serve it. `state` is the node's, "" while nothing is known of it.

    `kind` is what the request needs the model to do: "chat" (write text) or
    "embedding".
    """
    if not state:
        return error_for("overloaded", "the node is starting")
    if state in _STOPPING:
        return error_for("shutting_down", "the node is stopping")
    if fact is None:
        words = f"model {model} does not exist here; GET /v1/models lists what does"
        return error_for("model_not_found", words, param="model")
    if fact.get("kind", kind) not in (kind, None):
        words = f"model {model} {_DOES[fact['kind']]}"
        return error_for("wrong_modality", words, param="model")
    return _model_refusal(model, fact)


def decision_s(device_kind: str, *, compiles: bool = False) -> float:
    """How long a device may take to accept a request."""
    compile_s = _COMPILE_S if compiles else 0.0
    return _DECISION_S.get(device_kind, _DECISION_OTHERWISE_S) + compile_s


def num_seats(fact: Fact, num_ours: int) -> int:
    """How many seats serve `num_ours` of the model's requests; 0 = nobody knows yet.

    Its others are told of by the status page: they have their share of the seats.
    """
    running, waiting = fact.get("running") or 0, fact.get("waiting") or 0
    if not running:
        return 0
    share = min(1.0, num_ours / (running + waiting))
    return max(1, round(running * share))


def token_s(fact: Fact) -> float:
    """How long a token of one stream takes; 0.0 = not measured yet."""
    rate = (fact.get("rates") or {}).get("decode_tokens_per_s")
    return 1 / rate if rate else 0.0


def _model_refusal(model: str, fact: Fact) -> ServiceError | None:
    status = fact["status"]
    if status in _LOADING:
        return _loading(model, fact)
    if status in _RECOVERING:
        words = f"the device of model {model} is coming back"
        return error_for("model_recovering", words)
    if status != "loaded":
        return error_for("no_healthy_node", _idle_words(model, fact))
    servable = fact.get("servable") or {"ok": True}
    if not servable.get("ok", True):
        reason = servable.get("reason") or "it is not servable now"
        return error_for("no_healthy_node", f"model {model}: {reason}")
    return None


def _loading(model: str, fact: Fact) -> ServiceError:
    percent, eta_s = fact.get("percent") or 0, fact.get("eta_s")
    retry_s = min(max(1.0, float(eta_s)), _LONGEST_RETRY_S) if eta_s else None
    return error_for(
        "model_loading",
        f"model {model} is being loaded: {fact.get('stage') or 'waiting'}, {percent} %",
        retry_after_s=retry_s,
        fields={"percent": percent, "eta_s": eta_s},
    )


def _idle_words(model: str, fact: Fact) -> str:
    status = fact["status"]
    if status == "failed":
        return f"model {model} could not be loaded: {_failure(fact)}"
    if status == "unloaded":
        return f"model {model} is not loaded; load it with POST /models/load"
    return f"model {model} is {status}"


def _failure(fact: Fact) -> str:
    wire = fact.get("error")
    return str(wire[1]) if wire else str(fact.get("reason") or "see the journal")
