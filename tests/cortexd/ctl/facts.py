"""Facts documents as a node and a gateway give them, for tests of what is shown."""

from __future__ import annotations

from typing import Any

Facts = dict[str, Any]
GIB = 1 << 30
NOW_S = 1_800_000_000.0


def device(name: str = "cpu-0", **changes: Any) -> Facts:
    return {
        "device": name,
        "kind": "cpu",
        "name": "2 cores",
        "uuid": "",
        "pid": 4711,
        "state": "ready",
        "reason": "",
        "since_s": NOW_S - 725,
        "generation": 1,
        "phase": "IDLE",
        "memory_total_bytes": 12 * GIB,
        "memory_free_bytes": 11 * GIB,
        "memory_foreign_bytes": 0,
        "models": ["smollm2-135m-instruct"],
        "running": 0,
        "waiting": 0,
        "emitted_tokens_total": 0,
        "deaths_total": 0,
        "last_fault": None,
        **changes,
    }


def model(name: str = "smollm2-135m-instruct", **changes: Any) -> Facts:
    return {
        "id": name,
        "status": "loaded",
        "stage": "",
        "percent": 100.0,
        "eta_s": None,
        "reason": "",
        "since_s": NOW_S - 725,
        "devices": ["cpu-0"],
        "servable": {"ok": True, "reason": ""},
        "context": 8192,
        "dtype": "bfloat16",
        "quant": "none",
        "resident_bytes": 283 << 20,
        "pinned": False,
        "priority": 100,
        "last_used_s": NOW_S - 65,
        "running": 0,
        "waiting": 0,
        "load_seconds": 1.2,
        "error": None,
        **changes,
    }


def node(**changes: Any) -> Facts:
    return {
        "schema": 1,
        "node": "box-a",
        "boot_id": "b00t",
        "residency": 1,
        "time_s": NOW_S,
        "started_s": NOW_S - 7500,
        "version": {"cortex": "0.1.0", "python": "3.11.7"},
        "state": "ready",
        "health": [],
        "listen": {"http": "127.0.0.1:13131", "metrics": "127.0.0.1:13132"},
        "host": {
            "cores": 2,
            "memory_total_bytes": 24 * GIB,
            "memory_free_bytes": 20 * GIB,
        },
        "devices": [device()],
        "models": [model()],
        **changes,
    }


def gateway(**changes: Any) -> Facts:
    place = {"node": "local", "status": "loaded", "percent": 100.0}
    return {
        "schema": 1,
        "gateway": "box-a",
        "state": "ready",
        "started_s": NOW_S - 7400,
        "listen": {"http": "127.0.0.1:31313"},
        "nodes": [
            {
                "name": "local",
                "endpoint": "http://127.0.0.1:13131",
                "state": "up",
                "since_s": NOW_S - 7390,
                "misses": 0,
                "version": {"cortex": "0.1.0"},
                "latency_ms": 1.4,
            }
        ],
        "devices": [{**device(), "node": "local"}],
        "models": [
            {"id": "smollm2-135m-instruct", "aliases": [], "locations": [place]}
        ],
        "health": [],
        **changes,
    }
