"""What a device's loop reads the time, waits and hears its workers with.

Device process, torch-free; the real ones unless told otherwise.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from dataclasses import dataclass

from ipc.channel import DeviceEnd


@dataclass(frozen=True, slots=True)
class Surroundings:
    clock: Callable[[], float] = time.monotonic
    poll: Callable[[], select.poll] = select.poll
    end: Callable[..., DeviceEnd] = DeviceEnd


REAL = Surroundings()
