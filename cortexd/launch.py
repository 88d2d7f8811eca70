"""The command lines, descriptors and settings of the gateway's children.

Supervisor. Each child gets its settings as a sealed memfd and the sockets that it needs
under the numbers that they have here, and nothing else.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cortexd.config import Settings
from ipc.child import Child
from ipc.launch import METRICS_FOLDER, forget_gauges, launch

_WORKER_APP = "cortexd.app:create"
_CHILD_EXIT = "cortexd.series:mark_dead"


@dataclass(frozen=True, slots=True)
class Sockets:
    """Listening; they outlive every child."""

    http: socket.socket
    metrics: socket.socket
    fleet: socket.socket


@dataclass(frozen=True, slots=True)
class Launch:
    """What all children have in common."""

    gateway: str
    settings: Settings
    sockets: Sockets
    fleet_path: Path
    metrics_folder: Path

    def fleet(self) -> Child:
        given = {
            "settings": self.settings.dump(),
            "fleet_fd": self.sockets.fleet.fileno(),
        }
        return self._spawn("fleet", given, self.sockets.fleet)

    def frontend(self) -> Child:
        forget_gauges(self.metrics_folder)
        gateway = self.settings.config.gateway
        given = {
            "title_prefix": "cortexd",
            "app": _WORKER_APP,
            "fds": [self.sockets.http.fileno()],
            "workers": gateway.workers,
            "graceful_timeout_s": gateway.drain_s,
            "header_deadline_s": gateway.header_deadline_s,
            "write_stall_s": gateway.stall_timeout_s,
            "preload": [_WORKER_APP.partition(":")[0]],
            "extra": {
                # clients get the host's name only where the operator chose so (S51)
                "gateway": gateway.name or "cortex",
                "fleet_path": str(self.fleet_path),
                "settings": self.settings.dump(),
                "child_exit": _CHILD_EXIT,
            },
        }
        return self._spawn("frontend", given, self.sockets.http)

    def metrics(self) -> Child:
        given = {
            "metrics_fd": self.sockets.metrics.fileno(),
            "fleet_path": str(self.fleet_path),
        }
        return self._spawn("metrics", given, self.sockets.metrics)

    def _spawn(
        self, name: str, given: Mapping[str, Any], listener: socket.socket
    ) -> Child:
        return launch(
            name,
            f"cortexd.{name}",
            given,
            fds=(listener.fileno(),),
            environ={METRICS_FOLDER: str(self.metrics_folder)},
        )
