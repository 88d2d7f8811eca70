"""Whom a device tells what happens to it, and who may testify about its lives.

Supervisor; types, and the witness of devices that have none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ipc.messages import Fault, LinkUp
from neurond.states import DeviceEvent
from neurond.suspects import Charge

if TYPE_CHECKING:
    from neurond.deviceslot import DeviceSlot


@dataclass(frozen=True, slots=True)
class Owner:
    """`memory_back` is awaited between a death and the next life; `spares` says why no
    request pays for the end of a life, empty: one may have to; `groups` numbers the
    trial groups of all devices, none twice."""

    on_hello: Callable[[DeviceSlot], None]
    on_up: Callable[[DeviceSlot], None]
    on_down: Callable[[DeviceSlot, str, Charge], None]
    on_message: Callable[[DeviceSlot, LinkUp], None]
    on_change: Callable[[DeviceSlot, DeviceEvent], None]
    memory_back: Callable[[DeviceSlot], Awaitable[None]]
    spares: Callable[[DeviceSlot], str]
    groups: Iterator[int]


class Witness(Protocol):
    """Evidence from outside of the process: drivers, the kernel."""

    def born(self, device: DeviceSlot) -> None:
        """A life begins, or its pid became known."""

    def killed(self, device: DeviceSlot) -> None:
        """We sent SIGKILL."""

    def faulted(self, device: DeviceSlot, fault: Fault) -> None:
        """Its last words."""

    def died(self, device: DeviceSlot) -> None:
        """It is gone, or written off; told before `spares` is asked."""

    def spares(self, device: DeviceSlot) -> str:
        """Why nobody pays for the end of this life; empty: whoever ran may have to."""


class NoWitness:
    """Of devices that only their processes tell of."""

    def born(self, device: DeviceSlot) -> None: ...
    def killed(self, device: DeviceSlot) -> None: ...
    def faulted(self, device: DeviceSlot, fault: Fault) -> None: ...
    def died(self, device: DeviceSlot) -> None: ...
    def spares(self, device: DeviceSlot) -> str:
        return ""
