"""A known computation: does the device still compute, and rightly?

Device process. Run after every unexpected exception of a forward, at every load and now
and then while idle, under a deadline on the status page. A CUDA error is sticky, so a
poisoned context fails here for sure.
"""

from __future__ import annotations

import gc

import torch

from ipc.errors import DeviceFault
from neurond.device.backend import Memory

_NUMBERS = 256
_EXPECTED = _NUMBERS * (_NUMBERS - 1)
_SIZE, _MODULUS = 64, 13
_EXPECTED_PRODUCTS = 9_432_020
"""Exact in every precision that a product of matrices has: its terms are small."""
_ALLOCATION_BYTES = 1 << 20


def probe(device: torch.device) -> None:
    """Raises whatever the device raises, or DeviceFault for a wrong result."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    doubled = torch.arange(_NUMBERS, device=device) * 2
    _compare(int(doubled.sum().item()), _EXPECTED)
    numbers = torch.arange(_SIZE * _SIZE, device=device) % _MODULUS
    matrix = numbers.to(torch.float32).view(_SIZE, _SIZE)
    _compare(int((matrix @ matrix).sum().item()), _EXPECTED_PRODUCTS)
    torch.empty(_ALLOCATION_BYTES, dtype=torch.uint8, device=device)


def give_back(device: torch.device) -> None:
    """What a failed forward still held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def cuda_memory(device: torch.device) -> Memory:
    """What torch has reserved and doesn't use is free."""
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Memory(total, free + unused)


def _compare(result: int, expected: int) -> None:
    if result != expected:
        raise DeviceFault(f"the probe computed {result} instead of {expected}")
