"""One forward, armed and judged: outcomes for its rows, or the end of the process.

Device process, torch-free. The page shows the step's phase, deadline and request ids
before the backend is entered. Whatever the backend raises is judged: a fault of the
device ends the process; anything else must first pass the probe (what can't be told
from a fault is one unless the device still computes) and then fails the row to blame.

Out of memory is no fault of the device (S20): the prefix store is dropped and the step
tried again, then its rows one by one, so that only what is too large fails. Twice in a
row with nothing else on the device, and it is one.

Invariant: an error reaches exactly the rows that have it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
        relieve: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`relieve` frees what memory it can."""
        self._backend = backend
        self._page = page
        self._settings = settings
        self._generation = generation
        self._relieve = relieve
        self._clock = clock
        self._num_lonely_ooms = 0
        self.seconds = 0.0
        """Of the last step; 0.0 where it had to be tried again."""

    def run(self, works: Listing[Work], *, lonely: bool = False) -> list[Outcome]:
        """One outcome per work. Raises DeviceDied. `lonely`: nobody else runs."""
        started_s = self._clock()
        outcomes, error = self._step(works)
        self.seconds = self._clock() - started_s if error is None else 0.0
        if error is not None and fault_class(error) == "capacity":
            self._page.add("out_of_memory_total")
            self._relieve()
            outcomes, error = self._step(works)
        if error is not None:
            outcomes = self._judge(error, works, lonely=lonely)
            self.seconds = 0.0
        else:
            self._num_lonely_ooms = 0
        return outcomes

    def _step(self, works: Listing[Work]) -> tuple[list[Outcome], Exception | None]:
        prefill = any(work.sequence.num_pending > 1 for work in works)
        self._arm(Phase.PREFILL if prefill else Phase.DECODE, works)
        started_s = self._clock()
        outcomes, error = self._attempt(works)
        seconds = self._clock() - started_s
        self._page.observe("prefill_seconds" if prefill else "step_seconds", seconds)
        if error is None:
            self._page.step()
            self._page.idle()
        return outcomes, error

    def _attempt(self, works: Listing[Work]) -> tuple[list[Outcome], Exception | None]:
        try:
            return self._backend.forward(works), None
        except Exception as error:  # the step border: whatever a forward can raise
            return [], error

    def _judge(
        self, error: Exception, works: Listing[Work], *, lonely: bool
    ) -> list[Outcome]:
        if fault_class(error) in FATAL_CLASSES:
            raise self._died(error, works) from error
        if not isinstance(error, ServiceError):
            self._probe(error, works)
        if len(works) > 1:  # only one row is to blame; let each show it alone
            return [outcome for work in works for outcome in self.run([work])]
        if fault_class(error) == "capacity" and lonely:
            self._num_lonely_ooms += 1
            if self._num_lonely_ooms > 1:
                raise self._died(error, works) from error
        self._page.step()
        self._page.idle()
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
        """A step on trial has another name, and the deadline of what it does; the probe
        after it belongs to it, since a death there is the step's as well."""
        settings = self._settings
        deadline_s = {
            Phase.PREFILL: settings.prefill_deadline_s,
            Phase.DECODE: settings.decode_deadline_s,
            Phase.PROBE: settings.probe_deadline_s,
        }[phase]
        if works[0].sequence.trial_group:
            phase = Phase.TRIAL
        self._page.arm(phase, deadline_s, [work.sequence.id for work in works])

    def _died(self, error: Exception, works: Listing[Work]) -> DeviceDied:
        return died(
            error,
            model=works[0].sequence.model.name,
            generation=self._generation,
            requests=[work.sequence.id for work in works],
        )
