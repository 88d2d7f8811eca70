"""What a lifecycle acts through: the one place where its decisions touch the world.

Supervisor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from neurond.converter import Converter
from neurond.deviceslot import DeviceSlot


@dataclass(frozen=True, slots=True)
class Effects:
    """What a lifecycle acts through."""

    devices: Callable[[], Iterable[DeviceSlot]]
    converter: Converter
    cache: Path
    note: Callable[..., None]
    changed: Callable[[], None]
    cuda_problem: Callable[[], str] = lambda: ""
    """Why no device can be used, when that is the driver's doing; else empty."""
