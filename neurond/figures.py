"""The plain numbers that the metrics process turns into series.

Supervisor; pure but for reading the sizes of our own processes. Device totals span all
lives of a device (`odometer`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neurond.deviceslot import DeviceSlot
from neurond.facts import of_model
from neurond.modelrecord import ModelRecord

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MODEL_KEYS = ("id", "context", "load_seconds", "rates", "kv")

Figures = dict[str, Any]


def of_node(
    devices: Sequence[DeviceSlot],
    records: Iterable[ModelRecord],
    processes: Mapping[str, int | None],
    restarts: Mapping[str, int],
    quarantine: Mapping[str, int] | None = None,
) -> Figures:
    """`processes`: name → pid; None for ourselves or for one that does not run.
    `quarantine`: requests in it now (`held`) and put there since the start (`total`).
    """
    return {
        "devices": [_device(device) for device in devices],
        "models": _models(devices, records),
        "processes": _sizes(processes),
        "restarts_total": dict(restarts),
        "quarantine": dict(quarantine or {}),
    }


def _models(
    devices: Sequence[DeviceSlot], records: Iterable[ModelRecord]
) -> list[Figures]:
    """Cut from the facts, so that a scrape and `/models` can't disagree."""
    views = {device.name: device.view() for device in devices}
    told = [of_model(record, views, up=set(views)) for record in records]
    return [
        {**{key: model[key] for key in _MODEL_KEYS}, "status": str(record.status)}
        for model, record in zip(told, records, strict=True)
    ]


def _device(device: DeviceSlot) -> Figures:
    view, history = device.view(), device.history
    return {
        "device": device.name,
        "kind": device.spec.kind,
        "state": str(device.state),
        "generation": device.generation,
        "counters": history.odometer.counters(view),
        "gauges": dict(view.gauges) if view else {},
        "series": history.odometer.series(view),
        "deaths_total": history.deaths,
        "faults_total": dict(history.faults),
        "suspects_total": history.num_suspects,
        "convicted_total": history.num_convicted,
        "recovery": history.recovery.series(),
        "state_seconds_total": history.states.totals_s(),
        "memory_total_bytes": device.memory_total_bytes,
        "memory_free_bytes": device.memory_free_bytes(),
    }


def _sizes(processes: Mapping[str, int | None]) -> list[Figures]:
    found = []
    for name, pid in processes.items():
        number = os.getpid() if name == "supervisor" else pid
        size_bytes = _rss_bytes(number) if number else None
        if size_bytes is not None:
            found.append({"name": name, "pid": number, "rss_bytes": size_bytes})
    return found


def _rss_bytes(pid: int) -> int | None:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except OSError:
        return None  # it ended meanwhile
    return int(pages) * _PAGE_BYTES
