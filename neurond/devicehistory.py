"""What the lives of a device have left behind: counts, the last fault, times.

Supervisor; one per device slot. From it follows whether there is another life, and
after which pause.

Invariant: an end that an operator ordered, or that a stop brought, blames neither the
device nor a request; totals never go back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from ipc.child import Exit
from ipc.messages import Fault
from ipc.status import PageView
from neurond.devicelife import Life
from neurond.deviceprocess import fault_fact
from neurond.odometer import Odometer
from neurond.recovery import RecoveryClock, StateClock
from neurond.states import is_beyond_starting, is_hopeless, pause_s
from neurond.suspects import Charge, judge


class History:
    def __init__(self) -> None:
        self.deaths = 0
        self.faults: Counter[str] = Counter()
        self.num_suspects = 0
        self.num_convicted = 0
        self.last_fault: dict[str, Any] | None = None
        self.odometer = Odometer()
        self.recovery = RecoveryClock()
        self.states = StateClock()
        self._num_unproductive = 0
        self._num_failed_forks = 0
        self._num_waits = 0

    def heard(self, fault: Fault) -> None:
        """Last words."""
        kind, chain = fault.fault_class, fault.chain
        self.last_fault = fault_fact(fault.type, chain, kind)

    def ended(
        self, life: Life, end: Exit | None, reason: str, groups: Iterator[int]
    ) -> Charge:
        """Count how a life ended, and say whom that charges; `end` None = written off.

        `groups` numbers trial groups.
        """
        if life.is_ordered:
            return Charge()
        self.faults[life.fault_class] += 1
        if life.fault is None:
            self.last_fault = fault_fact(reason, (), life.fault_class)
        charge = judge(life.ending(end), groups)
        self.num_suspects += len(charge.suspects)
        self.num_convicted += len(charge.convicted)
        self._blame(life, charge)
        return charge

    def _blame(self, life: Life, charge: Charge) -> None:
        """A life that convicts a request speaks neither for nor against the device."""
        if life.is_productive():
            self._num_unproductive = 0
        elif life.is_patient:
            self._num_waits += 1
        elif not charge.convicted:
            self._num_unproductive += 1

    def fork_failed(self) -> None:
        self._num_failed_forks += 1

    def came_up(self) -> None:
        """A process said hello."""
        self._num_failed_forks = self._num_waits = 0

    def closed(self, last: PageView) -> None:
        self.odometer.fold(last)

    def forgive(self) -> None:
        """An operator wants another try."""
        self._num_unproductive = self._num_failed_forks = 0

    def pause_s(self) -> float:
        """Before the next life; a fork that failed, or a driver that isn't ready, says
        nothing about the device, but isn't hurried."""
        waits = self._num_failed_forks + self._num_waits
        return pause_s(self._num_unproductive + waits)

    def why_hopeless(self) -> str:
        """Why there is no other life; empty when there is."""
        if is_hopeless(self._num_unproductive):
            return f"{self._num_unproductive} lives without a token"
        if is_beyond_starting(self._num_failed_forks):
            return f"{self._num_failed_forks} starts in a row failed"
        return ""
