"""The command lines, descriptors and settings of the node's children but the devices.

Supervisor. Each child gets its settings as a sealed memfd and the sockets that it needs
under the numbers that they have here, and nothing else.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipc.child import Child, spawn
from ipc.launch import METRICS_FOLDER, forget_gauges, launch
from neurond.config import Config
from neurond.frontend.settings import WorkerSettings, frontend_settings


@dataclass(frozen=True, slots=True)
class Sockets:
    """Listening; they outlive every child."""

    http: socket.socket
    metrics: socket.socket


@dataclass(frozen=True, slots=True)
class Folders:
    """Where the node keeps its things."""

    state: Path
    cache: Path
    runtime: Path

    @property
    def control(self) -> Path:
        return self.runtime / "control.sock"

    @property
    def attach(self) -> Path:
        return self.runtime / "attach.sock"

    @property
    def metrics(self) -> Path:
        return self.runtime / "metrics"


@dataclass(frozen=True, slots=True)
class Launch:
    """What the children have in common."""

    node: str
    config: Config
    sockets: Sockets
    folders: Folders

    def frontend(self) -> Child:
        forget_gauges(self.folders.metrics)
        limits = self.config.limits
        worker = WorkerSettings(
            node=self.node,
            attach_path=str(self.folders.attach),
            control_path=str(self.folders.control),
            token=self.config.node.token,
            body_bytes=limits.body_bytes,
            max_queue=limits.max_queue,
            load_deadline_s=limits.load_deadline_s,
            resume=self.config.engine.resume,
            resume_deadline_s=limits.resume_deadline_s,
            log_format=self.config.log.format,
            hygiene=self.config.hygiene,
        )
        given = frontend_settings(
            worker,
            fds=(self.sockets.http.fileno(),),
            workers=self.config.node.workers,
            header_deadline_s=limits.header_deadline_s,
            graceful_timeout_s=limits.drain_s,
        )
        return self._spawn("frontend", given, self.sockets.http)

    def metrics(self) -> Child:
        given = {
            "fd": self.sockets.metrics.fileno(),
            "control": str(self.folders.control),
            "multiproc_dir": str(self.folders.metrics),
        }
        return self._spawn("metrics", given, self.sockets.metrics)

    def nvml(self, line: socket.socket) -> Child:
        argv = [sys.executable, "-m", "neurond.nvml", "--fd", str(line.fileno())]
        return spawn("nvml", argv, fds=(line.fileno(),))

    def device_settings(self) -> dict[str, Any]:
        """What every device process is told; flat, by the names of the file."""
        config = self.config
        return {
            "threads": config.devices.threads,
            "count": config.devices.count,
            "memory_bytes": config.devices.memory_bytes,
            "packed_folder": str(self.folders.cache / "packed"),
            "numerics": config.engine.numerics,
            "max_running": config.engine.max_running,
            "prefill_chunk": config.engine.prefill_chunk,
            "kv_bytes": config.engine.kv_bytes,
            "page_tokens": config.engine.page_tokens,
            "prefix_cache": config.engine.prefix_cache,
            "first_token_target_s": config.engine.first_token_target_s,
            "max_queue": config.limits.max_queue,
            "queue_deadline_s": config.limits.queue_deadline_s,
            "boot_deadline_s": config.limits.boot_deadline_s,
            "load_deadline_s": config.limits.load_deadline_s,
            "prefill_deadline_s": config.limits.prefill_deadline_s,
            "decode_deadline_s": config.limits.decode_deadline_s,
            "injection": config.faults.injection,
            "probe_every_s": config.faults.probe_every_s,
        }

    def _spawn(
        self, name: str, given: Mapping[str, Any], listener: socket.socket
    ) -> Child:
        return launch(
            name,
            f"neurond.{name}",
            given,
            fds=(listener.fileno(),),
            environ={METRICS_FOLDER: str(self.folders.metrics)},
        )
