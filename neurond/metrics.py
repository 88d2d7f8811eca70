"""`neurond: metrics`: what Prometheus scrapes of a node.

Child of the supervisor, with the listening socket that it inherited. Two sources:

    front-end workers   files in their multiprocess folder
    devices, models     control.sock, op "metrics", asked at each scrape, 1 s at most;
                        the last answer stands while the supervisor doesn't answer

Invariant: labels are bounded (devices, models that the node knows, names of processes;
never a pid), and counters never go back while the supervisor lives.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

from ipc.controlcall import call
from ipc.errors import ServiceError
from ipc.frames import FrameError
from ipc.journal import Journal
from ipc.process import die_with_parent, read_settings, set_title
from neurond.families import families
from neurond.serving.scrape import serve

TITLE = "neurond: metrics"
ASK_TIMEOUT_S = 1.0

Facts = Mapping[str, Any]


class NodeCollector:
    """Asks the supervisor; a scrape waits for it `timeout_s` at most."""

    def __init__(self, control: Path, timeout_s: float = ASK_TIMEOUT_S) -> None:
        self._control = control
        self._timeout_s = timeout_s
        self._last: Facts = {}

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "neurond_supervisor_up",
            "Whether the supervisor answered; else devices are as last known",
            value=float(self._ask()),
        )
        yield from families(self._last)

    def _ask(self) -> bool:
        try:
            self._last = call(self._control, "metrics", timeout_s=self._timeout_s)
        except (OSError, ServiceError, FrameError):
            return False
        return True


def registry_of(control: Path, multiproc_dir: Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(multiproc_dir))  # type: ignore[no-untyped-call]
    registry.register(NodeCollector(control))
    return registry


def main() -> int:
    die_with_parent()
    set_title(TITLE)
    parser = argparse.ArgumentParser(prog="python -m neurond.metrics")
    parser.add_argument("--settings-fd", type=int, required=True)
    given = read_settings(parser.parse_args().settings_fd)
    listener = socket.socket(fileno=given["fd"])
    registry = registry_of(Path(given["control"]), Path(given["multiproc_dir"]))
    serve(listener, registry, Journal("neurond"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
