"""One forward, armed and judged: outcomes for its rows, or the end of the process.

Device process, torch-free. The page shows the step's phase, deadline and request ids
before the backend is entered. Whatever the backend raises is judged: a fault of the
device ends the process; anything else must first pass the probe (what can't be told
from a fault is one unless the device still computes) and then fails the row to blame.

Invariant: an error reaches exactly the rows that have it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Listing

from ipc.errors import ServiceError
from ipc.status import Phase, StatusWriter
from neurond.device.backend import Backend, Outcome, Work
from neurond.device.settings import DeviceSettings
from neurond.device.verdict import (
    FATAL_CLASSES,
    DeviceDied,
    as_service_error,
    causes,
    died,
    fault_class,
)


class Forward:
    def __init__(
        self,
        backend: Backend,
        page: StatusWriter,
        settings: DeviceSettings,
        *,
        generation: int,
    ) -> None:
        self._backend = backend
        self._page = page
        self._settings = settings
        self._generation = generation

    def run(self, works: Listing[Work]) -> list[Outcome]:
        """One outcome per work. Raises DeviceDied."""
        prefill = works[0].sequence.num_pending > 1
        self._arm(Phase.PREFILL if prefill else Phase.DECODE, works)
        started_s = time.monotonic()
        outcomes, error = self._attempt(works)
        if error is not None:
            outcomes = self._judge(error, works)
        seconds = time.monotonic() - started_s
        self._page.observe("prefill_seconds" if prefill else "step_seconds", seconds)
        self._page.step()
        self._page.idle()
        return outcomes

    def _attempt(self, works: Listing[Work]) -> tuple[list[Outcome], Exception | None]:
        try:
            return self._backend.forward(works), None
        except Exception as error:  # the step border: whatever a forward can raise
            return [], error

    def _judge(self, error: Exception, works: Listing[Work]) -> list[Outcome]:
        if fault_class(error) in FATAL_CLASSES:
            raise self._died(error, works) from error
        if not isinstance(error, ServiceError):
            self._probe(error, works)
        if len(works) > 1:  # only one row is to blame; let each show it alone
            return [outcome for work in works for outcome in self.run([work])]
        return [as_service_error(error)]

    def _probe(self, error: Exception, works: Listing[Work]) -> None:
        """Raises DeviceDied, with the error and what the probe met in one chain."""
        self._arm(Phase.PROBE, works)
        try:
            self._backend.probe()
        except Exception as failed:  # the step border: a device that fails this is gone
            list(causes(error))[-1].__context__ = failed
            raise self._died(error, works) from error

    def _arm(self, phase: Phase, works: Listing[Work]) -> None:
        settings = self._settings
        deadline_s = {
            Phase.PREFILL: settings.prefill_deadline_s,
            Phase.DECODE: settings.decode_deadline_s,
            Phase.PROBE: settings.probe_deadline_s,
        }[phase]
        self._page.arm(phase, deadline_s, [work.sequence.id for work in works])

    def _died(self, error: Exception, works: Listing[Work]) -> DeviceDied:
        return died(
            error,
            model=works[0].sequence.model.name,
            generation=self._generation,
            requests=[work.sequence.id for work in works],
        )
