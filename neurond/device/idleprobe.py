"""Now and then a known computation on a device that has nothing to do.

Device process, torch-free. A device that broke while nobody used it is found before
the next request comes, and charges nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ipc.status import Phase, StatusWriter
from neurond.device.backend import Backend
from neurond.device.settings import DeviceSettings
from neurond.device.verdict import died


class IdleProbe:
    """`probe_every_s` after the last step or probe; 0 = never."""

    def __init__(
        self,
        backend: Backend,
        page: StatusWriter,
        settings: DeviceSettings,
        *,
        generation: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._page = page
        self._settings = settings
        self._generation = generation
        self._clock = clock
        self.put_off()

    def put_off(self) -> None:
        """A step has just shown that the device computes."""
        self._due_s = self._clock() + self._settings.probe_every_s

    def turn(self) -> None:
        """Nothing is to be done now. Raises DeviceDied."""
        if not self._settings.probe_every_s or self._clock() < self._due_s:
            return
        self._page.arm(Phase.PROBE, self._settings.probe_deadline_s)
        try:
            self._backend.probe(idle=True)
        except Exception as error:  # the step border: a device that fails this is gone
            raise died(
                error, model="", generation=self._generation, requests=()
            ) from error
        self._page.idle()
        self.put_off()
