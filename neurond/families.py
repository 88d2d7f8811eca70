"""The supervisor's figures as metric families: pure.

Metrics process. What an answer lacks is not shown.

Invariant: labels are bounded: devices, models that the node knows, names of processes,
parts and classes of ours; never a pid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)

Facts = Mapping[str, Any]

_DEVICE_STATES = (
    *("absent", "starting", "ready", "dying"),
    *("backoff", "failed", "stopped"),
)
_MODEL_STATUSES = (
    *("converting", "loading", "loaded", "recovering"),
    *("unloading", "unloaded", "failed", "poisoned"),
)


def families(answer: Facts) -> Iterator[Metric]:
    """The supervisor's answer as metric families; what it lacks is not shown."""
    devices = answer.get("devices", ())
    yield from _device_facts(devices)
    yield from _device_faults(devices)
    yield from _device_times(devices)
    yield from _device_counters(devices)
    yield from _device_gauges(devices)
    yield from _device_series(devices)
    yield _states("neurond_model_status", "model", _model_states(answer))
    yield from _model_gauges(answer.get("models", ()))
    yield _processes(answer.get("processes", ()))
    yield _restarts(answer.get("restarts_total", {}))
    yield from _quarantine(answer.get("quarantine"))


def _device_facts(devices: Sequence[Facts]) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "neurond_device_info", "Devices and their kind", labels=["device", "kind"]
    )
    generation = GaugeMetricFamily(
        "neurond_device_generation", "Lives of the device so far", labels=["device"]
    )
    deaths = CounterMetricFamily(
        "neurond_device_deaths", "Device processes that died", labels=["device"]
    )
    for device in devices:
        name = device["device"]
        info.add_metric([name, device.get("kind", "")], 1)
        generation.add_metric([name], device.get("generation", 0))
        deaths.add_metric([name], device.get("deaths_total", 0))
    states = {device["device"]: device.get("state", "absent") for device in devices}
    shown = _states("neurond_device_state", "device", states)
    yield from (info, shown, generation, deaths)


def _device_faults(devices: Sequence[Facts]) -> Iterator[Metric]:
    """Why devices died, and how many requests that charged."""
    faults = CounterMetricFamily(
        "neurond_device_faults",
        "Lives that ended in a fault, by its class",
        labels=["device", "class"],
    )
    for device in devices:
        for name, count in device.get("faults_total", {}).items():
            faults.add_metric([device["device"], name], count)
    yield faults
    for name, words in (
        ("suspects", "Requests that were in the step in which the device died"),
        ("convicted", "Requests that ended the device while they ran alone"),
    ):
        family = CounterMetricFamily(f"neurond_device_{name}", words, labels=["device"])
        for device in devices:
            family.add_metric([device["device"]], device.get(f"{name}_total", 0))
        yield family


def _device_times(devices: Sequence[Facts]) -> Iterator[Metric]:
    """How long it was away, part by part, and in each state."""
    recovery = HistogramMetricFamily(
        "neurond_device_recovery_seconds",
        "Parts of the time between a death and the next token",
        labels=["device", "part"],
    )
    states = CounterMetricFamily(
        "neurond_device_state_seconds",
        "Time in each state",
        labels=["device", "state"],
    )
    for device in devices:
        name = device["device"]
        for part, series in device.get("recovery", {}).items():
            recovery.add_metric([name, part], _cumulative(series), series["sum"])
        for state, seconds in device.get("state_seconds_total", {}).items():
            states.add_metric([name, state], seconds)
    yield from (recovery, states)


def _device_counters(devices: Sequence[Facts]) -> Iterator[Metric]:
    for name in _names(devices, "counters"):
        family = CounterMetricFamily(
            f"neurond_device_{name.removesuffix('_total')}",
            f"{_words(name.removesuffix('_total'))} on the device, over all its lives",
            labels=["device"],
        )
        for device in devices:
            if name in device.get("counters", {}):
                family.add_metric([device["device"]], device["counters"][name])
        yield family


def _device_gauges(devices: Sequence[Facts]) -> Iterator[Metric]:
    """What the supervisor measured goes before what the device says of itself."""
    values = {device["device"]: _gauges_of(device) for device in devices}
    for name in sorted({name for gauges in values.values() for name in gauges}):
        family = GaugeMetricFamily(
            f"neurond_device_{name}", f"{_words(name)} of the device", labels=["device"]
        )
        for device, gauges in values.items():
            if name in gauges:
                family.add_metric([device], gauges[name])
        yield family


def _gauges_of(device: Facts) -> dict[str, float]:
    measured = {
        name: device[name]
        for name in ("memory_total_bytes", "memory_free_bytes")
        if device.get(name) is not None
    }
    return {**device.get("gauges", {}), **measured}


def _device_series(devices: Sequence[Facts]) -> Iterator[Metric]:
    for name in _names(devices, "series"):
        family = HistogramMetricFamily(
            f"neurond_device_{name}", f"{_words(name)} of the device", labels=["device"]
        )
        for device in devices:
            series = device.get("series", {}).get(name)
            if series is not None:
                family.add_metric(
                    [device["device"]], _cumulative(series), series["sum"]
                )
        yield family


def _cumulative(series: Facts) -> list[tuple[str, float]]:
    """Counts per bucket, the last one above every bound, as Prometheus wants them."""
    edges = [*(f"{float(bound)!r}" for bound in series["bounds"]), "+Inf"]
    return list(zip(edges, accumulate(series["counts"]), strict=True))


_MODEL_GAUGES = (
    ("context_tokens", "Prompt and answer together at most", ("context",)),
    ("load_seconds", "Duration of its last load", ("load_seconds",)),
    (
        "prefill_tokens_per_second",
        "Prompt tokens computed, as last measured",
        ("rates", "prefill_tokens_per_s"),
    ),
    (
        "decode_tokens_per_second",
        "Tokens of one stream, as last measured",
        ("rates", "decode_tokens_per_s"),
    ),
    ("kv_used_bytes", "KV cache of its requests", ("kv", "used_bytes")),
    ("kv_cached_bytes", "KV cache of its prefix store", ("kv", "cached_bytes")),
)
"""Name, help, and where the value stands in a model's figures."""


def _model_gauges(models: Sequence[Facts]) -> Iterator[Metric]:
    """What isn't known yet is not shown."""
    for name, words, path in _MODEL_GAUGES:
        family = GaugeMetricFamily(f"neurond_model_{name}", words, labels=["model"])
        for model in models:
            value: Any = model
            for key in path:
                value = (value or {}).get(key)
            if value is not None:
                family.add_metric([model["id"]], value)
        yield family


def _model_states(answer: Facts) -> dict[str, str]:
    return {model["id"]: model["status"] for model in answer.get("models", ())}


def _states(name: str, label: str, current: Mapping[str, str]) -> Metric:
    """1 for the state of each, 0 for its others, so that none goes stale."""
    known = _DEVICE_STATES if label == "device" else _MODEL_STATUSES
    key = name.rpartition("_")[2]
    family = GaugeMetricFamily(
        name, f"1 for the {key} that the {label} is in", labels=[label, key]
    )
    for owner, state in current.items():
        for value in (*known, *({state} - set(known))):
            family.add_metric([owner, value], float(value == state))
    return family


def _processes(processes: Sequence[Facts]) -> Metric:
    family = GaugeMetricFamily(
        "neurond_process_resident_bytes",
        "Resident memory by process; those of one name together",
        labels=["process"],
    )
    totals: dict[str, float] = {}
    for process in processes:
        name = process["name"]
        totals[name] = totals.get(name, 0) + (process.get("rss_bytes") or 0)
    for name, total in totals.items():
        family.add_metric([name], total)
    return family


def _restarts(restarts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(
        "neurond_process_restarts",
        "Restarts of the node's own processes",
        labels=["process"],
    )
    for name, count in restarts.items():
        family.add_metric([name], count)
    return family


def _quarantine(quarantine: Facts | None) -> Iterator[Metric]:
    if quarantine is None:
        return
    yield GaugeMetricFamily(
        "neurond_quarantined",
        "Requests that are refused, since they ended a device",
        value=quarantine.get("held", 0),
    )
    yield CounterMetricFamily(
        "neurond_quarantines",
        "Requests put into quarantine",
        value=quarantine.get("total", 0),
    )


def _names(devices: Sequence[Facts], key: str) -> list[str]:
    return sorted({name for device in devices for name in device.get(key, {})})


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()
