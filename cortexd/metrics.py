"""`cortexd: metrics`: the gateway's figures for Prometheus.

A child of the supervisor. The workers' counters lie in a folder of files, which are
added up at each scrape; what the fleet is like is asked of the fleet process then.

Invariant: a scrape answers also while fleet is away; it says so.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from ipc.controlcall import call
from ipc.errors import ServiceError
from ipc.frames import FrameError
from ipc.journal import Journal
from ipc.process import die_with_parent, read_settings, set_title
from neurond.serving.scrape import serve

_ASK_TIMEOUT_S = 0.5
_STATES = ("unknown", "up", "down")


class FleetCollector(Collector):
    """The fleet's facts as gauges."""

    def __init__(self, fleet_path: Path) -> None:
        self._fleet_path = fleet_path

    def collect(self) -> Iterable[Metric]:
        facts = self._facts()
        yield GaugeMetricFamily(
            "cortexd_fleet_up", "Whether the fleet process answers", bool(facts)
        )
        yield nodes_of(facts)
        yield models_of(facts)

    def _facts(self) -> dict[str, Any]:
        try:
            return call(self._fleet_path, "status", timeout_s=_ASK_TIMEOUT_S)
        except (OSError, ServiceError, FrameError):
            return {}


def nodes_of(facts: dict[str, Any]) -> Metric:
    words = "Nodes by state; each node is in exactly one"
    family = GaugeMetricFamily("cortexd_nodes", words, labels=["node", "state"])
    for node in facts.get("nodes", []):
        for state in _STATES:
            family.add_metric([node["name"], state], float(node["state"] == state))
    return family


def models_of(facts: dict[str, Any]) -> Metric:
    words = "Whether a model would be served now"
    family = GaugeMetricFamily("cortexd_model_servable", words, labels=["model"])
    for model in facts.get("models", []):
        family.add_metric([model["id"]], float(model["servable"]["ok"]))
    return family


def registry(fleet_path: Path) -> CollectorRegistry:
    """PROMETHEUS_MULTIPROC_DIR names the workers' folder."""
    found = CollectorRegistry()
    MultiProcessCollector(found)  # type: ignore[no-untyped-call]
    found.register(FleetCollector(fleet_path))
    return found


def main() -> None:
    die_with_parent()
    set_title("cortexd: metrics")
    parser = argparse.ArgumentParser(prog="cortexd.metrics")
    parser.add_argument("--settings-fd", type=int, required=True)
    given = read_settings(parser.parse_args().settings_fd)
    listener = socket.socket(fileno=given["metrics_fd"])
    serve(listener, registry(Path(given["fleet_path"])), Journal("cortexd"))


if __name__ == "__main__":
    main()
