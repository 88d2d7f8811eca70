"""Which worker shares rings with which device.

Supervisor. A pair for every (attached worker, device that is up), made anew for each
life of a device; one end goes to each side, our copies are closed. Requests never pass
here.

Invariant: after `device_down` of a generation no worker is sent that generation again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from ipc.attach import WorkerLink
from ipc.journal import Journal
from ipc.messages import Attach, Detach
from ipc.pair import PairFds, create_pair
from neurond.deviceslot import DeviceSlot
from neurond.suspects import Charge


class Rings:
    """`devices` gives the slots; the workers are kept here."""

    def __init__(
        self,
        devices: Callable[[], Iterable[DeviceSlot]],
        journal: Journal,
        *,
        pair: Callable[..., PairFds] = create_pair,
    ) -> None:
        self._pair = pair
        self._devices = devices
        self._journal = journal
        self._workers: dict[int, WorkerLink] = {}

    def worker_attached(self, worker: WorkerLink) -> None:
        self._workers[worker.id] = worker
        for device in self._devices():
            if device.is_up:
                self._join(worker, device)

    def worker_lost(self, worker: WorkerLink) -> None:
        """Devices drop its requests."""
        self._workers.pop(worker.id, None)
        for device in self._devices():
            device.send(Detach(worker.id))

    def device_up(self, device: DeviceSlot) -> None:
        for worker in list(self._workers.values()):
            self._join(worker, device)

    def device_down(self, device: DeviceSlot, reason: str, charge: Charge) -> None:
        """Whose request an id is only its worker knows; each is told of all."""
        charged = (charge.suspects, charge.convicted)
        for worker in list(self._workers.values()):
            worker.send_down(device.name, device.generation, reason, *charged)

    def _join(self, worker: WorkerLink, device: DeviceSlot) -> None:
        """No memory or descriptors for rings: the worker does without the device."""
        sealed = worker.peer.uid != os.geteuid()
        generation = device.generation
        try:
            pair = self._pair(generation=generation, sealed=sealed)
        except OSError as error:
            self._journal.error(
                "no rings for a worker", device=device.name, cause=str(error)
            )
            return
        try:
            device.send(Attach(worker.id, generation, sealed), pair.numbers())
            worker.send_pair(device.name, generation, pair, sealed)
        finally:
            pair.close()
