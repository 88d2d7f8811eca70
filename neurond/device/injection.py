"""Faults on order, at a known step: a backend around any other.

Device process, torch-free; the supervisor reads `KINDS`. Only where `[faults]
injection` is on. A poisoned context is simulated as a GPU has it: every later call and
the probe fail alike, until the process ends. A backend that can really break its
context hands in how (`real`), and that is done instead.

    Inject(fault, at_step, request, times) ─▶ order ─ step … step ─▶ it happens

Steps are calls of `forward`, those of a step that is tried again included. Where
`at_step` is 0, what ends or poisons the process does so at once; `wrong_result` is of
loads, the next `times` ones in this process.

CUDA that can't be used at all is no order, as no process is there to take it: see
`standins.START_FILE`.

Invariant: without an order this is the backend that it stands around.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ipc.journal import Journal
from ipc.messages import Inject, Load
from neurond.device import standins
from neurond.device.backend import (
    Backend,
    GoldenSteps,
    LoadSteps,
    Memory,
    Outcome,
    Resident,
    Work,
)
from neurond.device.sequence import Sequence
from neurond.device.verdict import nan_error

_SLOW_S = 1.0
KINDS: Mapping[str, str] = MappingProxyType(
    {
        "slow": f"a step takes {_SLOW_S:g} s longer",
        "nan": "a step computes NaN for one request",
        "shape": "a step fails as with a request of the wrong shape",
        "oom": "a step is out of memory",
        "device_assert": "a step ends in a device-side assert (710)",
        "illegal_access": "a step ends in an illegal memory access (700)",
        "launch_failure": "a step ends in an unspecified launch failure (719)",
        "ecc": "a step meets an uncorrectable ECC error (214)",
        "nvlink": "a step meets an uncorrectable NVLink error (220)",
        "hang": "a step never ends, and its process answers nothing",
        "sigkill": "SIGKILL in a step",
        "segv": "SIGSEGV in a step",
        "abort": "SIGABRT in a step",
        "wrong_result": "a load ends with another golden result",
    }
)
"""What can be ordered, and where it shows."""

_IN_LOADS = frozenset({"wrong_result"})
_RAISED: Mapping[str, Callable[[], object]] = MappingProxyType(
    {"oom": standins.out_of_memory, "shape": standins.wrong_shape}
)
_AT_ONCE = standins.POISONS | frozenset(standins.ENDS)


@dataclass(slots=True)
class _Order:
    """`wait` steps are still to be left alone, `times` it is to happen."""

    fault: str
    wait: int
    request: int
    times: int

    def is_due(self, ids: Listing[int]) -> bool:
        """In a step with these requests."""
        return self.wait <= 0 and (not self.request or self.request in ids)


class InjectingBackend:
    """`real`: how to do a fault of that kind for real; nobody comes back from it."""

    def __init__(
        self,
        backend: Backend,
        real: Mapping[str, Callable[[], object]] = MappingProxyType({}),
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = backend.name
        self.max_rows = backend.max_rows
        self._backend = backend
        self._real = real
        self._sleep = sleep
        self._orders: list[_Order] = []
        self._poison = ""

    def obey(self, order: Inject, journal: Journal) -> None:
        """As `inject`, and the journal knows."""
        journal.warning(
            "a fault is to be simulated",
            event="fault.ordered",
            fault=order.fault,
            at_step=order.at_step,
            times=order.times,
        )
        try:
            self.inject(order)
        except ValueError as error:
            journal.error("order not understood", fault=str(error))

    def inject(self, order: Inject) -> None:
        """From now on. Raises ValueError for a fault that isn't known."""
        if order.fault not in KINDS:
            raise ValueError(f"no such fault: {order.fault}")
        if not order.times:
            self._orders = [o for o in self._orders if o.fault != order.fault]
        elif order.at_step <= 0 and order.fault in _AT_ONCE:
            self._break(order.fault)
        else:
            self._orders.append(
                _Order(order.fault, order.at_step, order.request, order.times)
            )

    # -- steps and loads

    def forward(self, works: Listing[Work]) -> list[Outcome]:
        self._check()
        ids = [work.sequence.id for work in works]
        spoilt = [self._happen(order, ids) for order in self._due(ids)]
        self._check()
        outcomes = self._backend.forward(works)
        for index in (at for at in spoilt if at is not None):
            outcomes[index] = nan_error()
        return outcomes

    def golden(self, model: Resident) -> GoldenSteps:
        self._check()
        digest = yield from self._backend.golden(model)
        order = next((o for o in self._orders if o.fault in _IN_LOADS), None)
        if order is None:
            return digest
        self._spend(order)
        return f"wrong-{digest}"

    def load(self, spec: Load) -> LoadSteps:
        self._check()
        return (yield from self._backend.load(spec))

    def probe(self, *, idle: bool = False) -> None:
        self._check()
        self._backend.probe(idle=idle)

    # -- the rest, which a poisoned context fails as well

    def open(self) -> Memory:
        standins.fail_start()
        return self._backend.open()

    def memory(self) -> Memory:
        self._check()
        return self._backend.memory()

    def unload(self, model: Resident) -> None:
        self._check()
        self._backend.unload(model)

    def prepare(self, sequence: Sequence) -> None:
        self._backend.prepare(sequence)

    def is_ready(self, sequence: Sequence) -> bool:
        return self._backend.is_ready(sequence)

    def release(self, sequence: Sequence) -> None:
        self._backend.release(sequence)

    def clear_pages(self, model: Resident, pages: Listing[int]) -> None:
        self._check()
        self._backend.clear_pages(model, pages)

    def copy_page(
        self, model: Resident, source: int, target: int, num_tokens: int
    ) -> None:
        self._check()
        self._backend.copy_page(model, source, target, num_tokens)

    def save_state(self, sequence: Sequence) -> Any:
        self._check()
        return self._backend.save_state(sequence)

    def load_state(self, sequence: Sequence, state: Any) -> None:
        self._check()
        self._backend.load_state(sequence, state)

    # -- faults

    def _check(self) -> None:
        if self._poison:
            raise standins.poison(self._poison)

    def _due(self, ids: Listing[int]) -> list[_Order]:
        """Orders of this step, those that end it last."""
        steps = [order for order in self._orders if order.fault not in _IN_LOADS]
        for order in steps:
            order.wait -= 1
        due = [order for order in steps if order.is_due(ids)]
        return sorted(due, key=lambda order: list(KINDS).index(order.fault))

    def _happen(self, order: _Order, ids: Listing[int]) -> int | None:
        """Which of the step's rows is spoilt, if it is only that."""
        self._spend(order)
        if order.fault == "nan":
            return ids.index(order.request) if order.request else 0
        if order.fault == "slow":
            self._sleep(_SLOW_S)
        else:
            self._break(order.fault)
        return None

    def _break(self, fault: str) -> None:
        """Raises, or ends the process; a poison that is ordered at once shows later."""
        if fault in self._real:
            self._real[fault]()
        elif fault in standins.POISONS:
            self._poison = fault
        else:
            {**_RAISED, **standins.ENDS}[fault]()

    def _spend(self, order: _Order) -> None:
        order.times -= 1
        if not order.times:
            self._orders.remove(order)
