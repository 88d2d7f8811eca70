"""The end of a node's devices: asked first, killed when they take too long.

Supervisor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from neurond.deviceslot import DeviceSlot

_KILL_S = 2.0


async def stop_devices(devices: Sequence[DeviceSlot], timeout_s: float) -> None:
    """Each may end its step. What SIGKILL doesn't end, dies with us."""
    for device in devices:
        device.stop()
    if await _all_gone(devices, timeout_s):
        return
    for device in devices:
        device.stop_hard()
    await _all_gone(devices, _KILL_S)


async def _all_gone(devices: Sequence[DeviceSlot], timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*[device.gone.wait() for device in devices])
    except TimeoutError:
        return False
    return True
