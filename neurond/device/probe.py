"""A known computation: does the device still compute, and rightly?

Device process. Run after every unexpected exception of a forward, under a deadline on
the status page. A CUDA error is sticky, so a poisoned context fails here for sure.
"""

from __future__ import annotations

import gc

import torch

from ipc.errors import DeviceFault

_NUMBERS = 256
_EXPECTED = _NUMBERS * (_NUMBERS - 1)
_ALLOCATION_BYTES = 1 << 20


def probe(device: torch.device) -> None:
    """Raises whatever the device raises, or DeviceFault for a wrong result."""
    gc.collect()  # drops what a failed forward still held
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    doubled = torch.arange(_NUMBERS, device=device) * 2
    result = int(doubled.sum().item())
    torch.empty(_ALLOCATION_BYTES, dtype=torch.uint8, device=device)
    if result != _EXPECTED:
        raise DeviceFault(f"the probe computed {result} instead of {_EXPECTED}")
