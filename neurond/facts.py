"""The node's facts: one document behind tables, `--json`, HTTP, events and dashboard.

Supervisor; pure. Every other view is cut from what `of_node` builds, so that no two can
disagree. Numbers are raw, units stand in the keys, times are unix time.

Invariant: everything that is not final carries a reason and a since.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import ipc
from ipc.attachwire import PROTOCOL
from ipc.status import ModelRow, PageView
from neurond import health
from neurond.deviceslot import DeviceSlot
from neurond.discovery import HostFacts
from neurond.modelid import EMBEDDED_SOURCE, EMBEDDER_SOURCE
from neurond.modelrecord import ModelRecord
from neurond.states import ModelStatus

SCHEMA = 1
_EMBEDDED_KINDS = {EMBEDDED_SOURCE: "chat", EMBEDDER_SOURCE: "embedding"}

Facts = dict[str, Any]
_NO_EVIDENCE: Facts = {"suspect": "", "reset_wanted": "", "xids": []}


@dataclass(frozen=True, slots=True)
class Own:
    """What the node knows of itself besides devices and models."""

    node: str
    boot_id: str
    residency: int
    started_s: float
    is_stopping: bool
    listen: Mapping[str, str]
    host: HostFacts
    cuda_problem: str
    foreign_bytes: Mapping[str, int]
    quarantined: Sequence[Facts] = ()
    evidence: Mapping[str, Facts] = field(default_factory=dict)
    """Of each device, what drivers say about it."""


def of_node(
    own: Own, devices: Sequence[DeviceSlot], records: Iterable[ModelRecord]
) -> Facts:
    views = {device.name: device.view() for device in devices}
    up = {device.name for device in devices if device.is_up}
    models = [of_model(record, views, up) for record in records]
    placed = {
        device.name: [m["id"] for m in models if device.name in m["devices"]]
        for device in devices
    }
    shown = [_device(d, views[d.name], placed[d.name], own) for d in devices]
    return {
        "schema": SCHEMA,
        "node": own.node,
        "boot_id": own.boot_id,
        "residency": own.residency,
        "time_s": time.time(),
        "started_s": own.started_s,
        "version": versions(),
        "state": health.state_of(shown, models, own.cuda_problem, own.is_stopping),
        "health": health.lines_of(shown, models, own.cuda_problem),
        "listen": dict(own.listen),
        "host": {
            "cores": own.host.cores,
            "memory_total_bytes": own.host.memory_total_bytes,
            "memory_free_bytes": own.host.memory_free_bytes,
            "hostname": own.host.hostname,
        },
        "devices": shown,
        "models": models,
        "quarantined": list(own.quarantined),
    }


def etag(facts: Mapping[str, Any]) -> str:
    return f"{facts['boot_id']}.{facts['residency']}"


def versions() -> dict[str, Any]:
    """Without importing what is asked about."""
    return {
        "cortex": ipc.__version__,
        "python": platform.python_version(),
        "torch": _installed("torch"),
        "transformers": _installed("transformers"),
        "protocol": PROTOCOL,
    }


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device(
    device: DeviceSlot,
    view: PageView | None,
    models: list[str],
    own: Own,
) -> Facts:
    history = device.history
    counters = history.odometer.counters(view)
    gauges = view.gauges if view else {}
    return {
        "device": device.name,
        "kind": device.spec.kind,
        "name": device.spec.name,
        "uuid": device.spec.uuid,
        "pid": device.pid,
        "state": str(device.state),
        "reason": device.reason,
        "since_s": device.since_s,
        "generation": device.generation,
        "phase": view.phase.name.lower() if view else None,
        "memory_total_bytes": device.memory_total_bytes,
        "memory_free_bytes": device.memory_free_bytes(),
        "memory_foreign_bytes": own.foreign_bytes.get(device.spec.uuid, 0),
        "models": models,
        "running": gauges.get("running", 0),
        "waiting": gauges.get("waiting", 0),
        "emitted_tokens_total": counters["emitted_tokens_total"],
        "counters": counters,
        "deaths_total": history.deaths,
        "faults_total": dict(history.faults),
        "suspects_total": history.num_suspects,
        "convicted_total": history.num_convicted,
        "recovery": history.recovery.facts(),
        "cure": device.cure,
        "last_fault": history.last_fault,
        **_NO_EVIDENCE,
        **own.evidence.get(device.name, {}),
    }


def of_model(
    record: ModelRecord, views: Mapping[str, PageView | None], up: set[str]
) -> Facts:
    """`up` names the devices that take requests."""
    spec, loaded = record.spec, record.loaded
    status = _status(record, up)
    info = loaded.info if loaded else {}
    rows = _rows(spec.id, record.devices, views)
    return {
        "id": spec.id,
        "status": str(status),
        **_progress(record),
        "reason": record.reason,
        "since_s": record.since_s,
        "devices": list(record.devices),
        "servable": _servable(record, status),
        "context": loaded.context if loaded else spec.context or None,
        "context_limited_by": info.get("context_limited_by"),
        "dtype": info.get("dtype", spec.dtype),
        "quant": info.get("quant", spec.quant),
        "digest": record.digest or None,
        "resident_bytes": loaded.resident_bytes if loaded else 0,
        "pinned": spec.pinned,
        "priority": spec.priority,
        "last_used_s": max((row.last_used_s for row in rows), default=0.0) or None,
        "running": sum(row.running for row in rows),
        "waiting": sum(row.queued for row in rows),
        "load_seconds": record.load_seconds,
        "rates": _rates(rows),
        "kv": _kv(record, rows, views),
        "architecture": info.get("architecture"),
        "kind": _kind(record),
        "dimensions": info.get("dimensions"),
        "matryoshka": info.get("matryoshka", False),
        "capabilities": _capabilities(record),
        "source": spec.source,
        "folder": record.folder or None,
        "error": record.error_wire(),
    }


def _rows(
    model: str, devices: Sequence[str], views: Mapping[str, PageView | None]
) -> list[ModelRow]:
    pages = [view for name in devices if (view := views.get(name)) is not None]
    return [row for view in pages for row in view.models if row.name == model]


def _rates(rows: Sequence[ModelRow]) -> Facts:
    """The slowest of its devices; null until measured. `decode` is of one stream."""
    prefill = min((row.figures.prefill_tokens_s for row in rows), default=0.0)
    decode = min((row.figures.decode_tokens_s for row in rows), default=0.0)
    return {
        "prefill_tokens_per_s": round(prefill, 1) or None,
        "decode_tokens_per_s": round(decode, 1) or None,
    }


def _kv(
    record: ModelRecord,
    rows: Sequence[ModelRow],
    views: Mapping[str, PageView | None],
) -> Facts:
    """The budget is the devices', for all models there; the rest is the model's."""
    pages = [view for name in record.devices if (view := views.get(name)) is not None]
    info = record.loaded.info if record.loaded else {}
    return {
        "budget_bytes": sum(view.gauges["kv_budget_bytes"] for view in pages),
        "used_bytes": sum(row.figures.kv_used_bytes for row in rows),
        "cached_bytes": sum(row.figures.kv_cached_bytes for row in rows),
        "page_tokens": info.get("page_tokens"),
        "bytes_per_token": info.get("bytes_per_token"),
    }


def _progress(record: ModelRecord) -> Facts:
    if record.progress is None:
        done = 100.0 if record.status is ModelStatus.LOADED else 0.0
        return {"stage": None, "percent": done, "eta_s": None}
    at = record.progress.position(time.monotonic())
    return {"stage": at.stage, "percent": at.percent, "eta_s": at.eta_s}


def _status(record: ModelRecord, up: set[str]) -> ModelStatus:
    """A model that is back serves only when all of its device's models are."""
    if record.status is ModelStatus.LOADED and not up.intersection(record.devices):
        return ModelStatus.RECOVERING
    return record.status


def _servable(record: ModelRecord, status: ModelStatus) -> Facts:
    if status is ModelStatus.LOADED:
        return {"ok": True, "reason": ""}
    return {"ok": False, "reason": record.reason or f"it is {status}"}


def _kind(record: ModelRecord) -> str | None:
    """Writes text (chat) or gives vectors (embedding); None while that is unknown."""
    if record.loaded is not None:
        return str(record.loaded.info.get("kind", "chat"))
    return _EMBEDDED_KINDS.get(record.spec.source)


def _capabilities(record: ModelRecord) -> Facts:
    """What is served today; what a model could do beyond it is not promised."""
    embeds = _kind(record) == "embedding"
    return {
        "chat": not embeds,
        "completion": not embeds,
        "embedding": embeds,
        "vision": False,
        "tools": False,
        "reasoning": False,
    }
