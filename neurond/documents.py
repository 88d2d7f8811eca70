"""The two documents that a supervisor answers with: the facts and the figures.

Supervisor. Gathers what facts and figures are cut from; builds nothing itself.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neurond import facts, figures
from neurond.composition import Given
from neurond.deviceslot import DeviceSlot
from neurond.discovery import host_facts
from neurond.gpuwatch import GpuWatch
from neurond.hardware import Hardware
from neurond.lifecycle import Lifecycle
from neurond.quarantine import Quarantine

Facts = dict[str, Any]


@dataclass(slots=True)
class Documents:
    """`restarts`: by name of a child, as the supervisor counts them."""

    given: Given
    devices: Sequence[DeviceSlot]
    lifecycle: Lifecycle
    gpus: GpuWatch
    hardware: Hardware
    quarantine: Quarantine
    restarts: Mapping[str, int]
    boot_id: str = field(default_factory=lambda: secrets.token_hex(8))
    started_s: float = field(default_factory=time.time)
    is_stopping: bool = False

    def facts(self) -> Facts:
        """The node's facts document."""
        given = self.given
        own = facts.Own(
            node=given.launch.node,
            boot_id=self.boot_id,
            residency=self.lifecycle.residency,
            started_s=self.started_s,
            is_stopping=self.is_stopping,
            listen=given.listeners.bound(given.launch.sockets),
            host=host_facts(),
            cuda_problem=self.hardware.cuda_problem() or given.cuda_problem,
            foreign_bytes=self.gpus.foreign_bytes(),
            quarantined=self.quarantine.facts(),
            evidence={d.name: self.hardware.facts(d) for d in self.devices},
        )
        return facts.of_node(own, self.devices, self.lifecycle.records.values())

    def figures(self, children: Mapping[str, int | None]) -> Facts:
        """For the metrics process; `children` are ours, by name, with their pids."""
        processes = {"supervisor": None, **children}
        processes |= {f"device {d.name}": d.pid for d in self.devices}
        models = self.lifecycle.records.values()
        held = len(self.quarantine.facts())
        quarantine = {"held": held, "total": self.quarantine.total}
        return figures.of_node(
            self.devices, models, processes, self.restarts, quarantine
        )
