"""What follows when a device comes up, goes, speaks or is given up.

Supervisor. Workers hear first, then models, then everybody: a worker never reads rings
of a generation that is over.

    up     ─▶ rings to every worker ─▶ device.ready
    down   ─▶ `down` to every worker ─▶ its models: recovering ─▶ device.died
    failed ─▶ its models: failed ─▶ device.failed
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ipc.messages import Fault, LinkUp
from neurond.chronicle import Chronicle
from neurond.deviceslot import DeviceSlot, Owner
from neurond.lifecycle import Lifecycle
from neurond.rings import Rings
from neurond.states import DeviceEvent


@dataclass(slots=True)
class DeviceEvents:
    """`changed`: the facts are no longer as told; `on_failed`: a device is out."""

    rings: Rings
    lifecycle: Lifecycle
    chronicle: Chronicle
    changed: Callable[[], None]
    on_failed: Callable[[], None]
    is_stopping: bool = False
    """Devices end because they must: no news."""

    def owner(self) -> Owner:
        return Owner(
            on_hello=self.lifecycle.device_hello,
            on_up=self._up,
            on_down=self._down,
            on_message=self._spoke,
            on_change=self._changed,
        )

    def _up(self, device: DeviceSlot) -> None:
        self.rings.device_up(device)
        self._note("device.ready", device)

    def _down(self, device: DeviceSlot, reason: str) -> None:
        self.rings.device_down(device, reason)
        self.lifecycle.device_lost(device, reason)
        if not self.is_stopping:
            self._note("device.died", device, reason=reason)

    def _changed(self, device: DeviceSlot, event: DeviceEvent) -> None:
        if event is DeviceEvent.GIVE_UP:
            self.lifecycle.device_failed(device)
            self._note("device.failed", device, reason=device.reason)
            self.on_failed()
        elif event is DeviceEvent.SPAWN:
            self._note("device.starting", device)
        self.changed()

    def _spoke(self, device: DeviceSlot, message: LinkUp) -> None:
        if isinstance(message, Fault):
            self.chronicle.poisoned(device.name, message)
        else:
            self.lifecycle.message(device, message)

    def _note(self, kind: str, device: DeviceSlot, **fields: str) -> None:
        generation = device.generation
        self.chronicle.note(kind, device=device.name, generation=generation, **fields)
