"""Whom the end of a device's life charges: pure.

Supervisor. Charged are the ids of the step in flight, and only where a request can have
been the cause. They are tried again in steps of their own, group by group; a death
while one runs alone convicts it (S16).

    death in a step of     what follows
    any requests           up to 8 groups of equal size
    a group on trial       two halves, a group each
    one on trial           convicted

Invariant: hardware, operators, the kernel and we ourselves charge nobody; nobody is
convicted but who was alone in a step of trial.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from ipc.child import EXIT_OK, Exit
from ipc.messages import Fault
from ipc.status import Phase
from neurond.faults import charges

MOST_GROUPS = 8
_CRASHES = frozenset(
    (
        signal.SIGSEGV,
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGTRAP,
        signal.SIGSYS,
    )
)
"""Signals that a process brings upon itself."""


class Kill(Enum):
    """Why we sent SIGKILL: it stood still, something outside it told of a fault, an
    operator wanted it; the rest is between the process and us."""

    DEADLINE = "deadline"
    EVIDENCE = "evidence"
    ORDER = "order"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a life ended, and what its page said last.

    `exit`: None = SIGKILL had no effect. `killed`: by us. `num_oom_kills`: processes
    that the kernel ended for want of memory meanwhile. `is_excused`: there is evidence
    that it was no request's doing.
    """

    exit: Exit | None
    phase: Phase
    requests: tuple[int, ...]
    fault: Fault | None = None
    killed: Kill | None = None
    num_oom_kills: int = 0
    is_excused: bool = False

    @property
    def ids(self) -> tuple[int, ...]:
        """Of the step in flight, each once."""
        told = self.fault.requests if self.fault is not None else self.requests
        return tuple(dict.fromkeys(told))


@dataclass(frozen=True, slots=True)
class Charge:
    """`suspects`: (request id, trial group). Ids of either kind are of that life."""

    suspects: tuple[tuple[int, int], ...] = ()
    convicted: tuple[int, ...] = ()


NOBODY = Charge()


def judge(ending: Ending, groups: Iterator[int]) -> Charge:
    """`groups` gives numbers that were never used before."""
    if not ending.ids or not _is_charged(ending):
        return NOBODY
    if ending.phase is not Phase.TRIAL:
        return Charge(_grouped(ending.ids, MOST_GROUPS, groups))
    if len(ending.ids) == 1:
        return Charge(convicted=ending.ids)
    return Charge(_grouped(ending.ids, 2, groups))


def _is_charged(ending: Ending) -> bool:
    if ending.is_excused or ending.killed in (Kill.ORDER, Kill.OTHER):
        return False
    if ending.fault is not None:
        fault = ending.fault
        return charges(fault.fault_class, fault.code, fault.chain)
    if ending.killed is not None:
        return True
    return ending.exit is not None and _is_own_doing(ending.exit, ending.num_oom_kills)


def _is_own_doing(end: Exit, num_oom_kills: int) -> bool:
    """Whether the process went by itself; SIGKILL may be the kernel's for memory."""
    if end.signal is None:
        return end.code not in (EXIT_OK, None)
    if end.signal == signal.SIGKILL:
        return num_oom_kills > 0
    return end.signal in _CRASHES


def _grouped(
    ids: Sequence[int], most: int, groups: Iterator[int]
) -> tuple[tuple[int, int], ...]:
    """Neighbours stay together; sizes differ by one at most."""
    num_groups = min(most, len(ids))
    numbers = [next(groups) for _ in range(num_groups)]
    return tuple(
        (number, numbers[index * num_groups // len(ids)])
        for index, number in enumerate(ids)
    )
