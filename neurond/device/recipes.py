"""How a CUDA context is really broken, for drills on a GPU.

Device process of a CUDA device, and only where `[faults] injection` is on. Every recipe
waits for the device, so that its error is raised in the step that asked for it. Behind
all but the last the context is gone for good, as after a fault nobody ordered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_DEVICE = "cuda:0"
_KERNELS = """
extern "C" __global__ void store(int* unused) { *(volatile int*)0x10 = 1; }
extern "C" __global__ void trap(int* unused) { asm("trap;"); }
extern "C" __global__ void spin(volatile int* flag) { while (*flag == 0) { } }
"""
_TOO_MANY_BYTES = 10**15


def recipes() -> dict[str, Callable[[], object]]:
    """By the kind of fault; ECC and NVLink errors can't be had, they are simulated."""
    return {
        "device_assert": device_assert,
        "illegal_access": lambda: _launch("store"),
        "launch_failure": lambda: _launch("trap"),
        "hang": lambda: _launch("spin"),
        "oom": out_of_memory,
    }


def device_assert() -> None:
    """Raises AcceleratorError 710: an index outside of its tensor."""
    index = torch.tensor([9], device=_DEVICE)
    torch.zeros(2, device=_DEVICE)[index]
    torch.cuda.synchronize(_DEVICE)


def out_of_memory() -> None:
    """Raises OutOfMemoryError; the context stays whole."""
    torch.empty(_TOO_MANY_BYTES, dtype=torch.uint8, device=_DEVICE)


def _launch(name: str) -> None:
    """One thread of a kernel of ours; raises what comes of it, or never ends."""
    compile_kernel: Any = torch.cuda._compile_kernel
    flag = torch.zeros(1, dtype=torch.int32, device=_DEVICE)
    kernel = compile_kernel(_KERNELS, name)
    kernel(grid=(1, 1, 1), block=(1, 1, 1), args=[flag])
    torch.cuda.synchronize(_DEVICE)
