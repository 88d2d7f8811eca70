"""How a CUDA context is really broken, for drills on a GPU.

Device process of a CUDA device, and only where `[faults] injection` is on. Every recipe
waits for the device, so that its error is raised in the step that asked for it. Behind
all but the last the context is gone for good, as after a fault that nobody ordered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_DEVICE = "cuda:0"
_FAR = 1 << 44
_MOST_CYCLES = (1 << 63) - 1
_TOO_MANY_BYTES = 10**15
_TRAP = 'extern "C" __global__ void trap(int* unused) { asm("trap;"); }'


def recipes() -> dict[str, Callable[[], object]]:
    """By the kind of fault; ECC and NVLink errors can't be had, they are simulated."""
    return {
        "device_assert": device_assert,
        "illegal_access": illegal_access,
        "launch_failure": launch_failure,
        "hang": hang,
        "oom": out_of_memory,
    }


def device_assert() -> None:
    """Raises AcceleratorError 710: an index outside of its tensor."""
    index = torch.tensor([9], device=_DEVICE)
    torch.zeros(2, device=_DEVICE)[index]
    torch.cuda.synchronize(_DEVICE)


def illegal_access() -> None:
    """Raises AcceleratorError 700: a tensor that claims memory far behind its own."""
    wild = torch.as_tensor(_Claim(torch.zeros(4, device=_DEVICE)), device=_DEVICE)
    wild[-4:] + 1
    torch.cuda.synchronize(_DEVICE)


def launch_failure() -> None:
    """Raises AcceleratorError 715 or 719: a kernel that traps."""
    from torch.utils import cpp_extension

    if cpp_extension.CUDA_HOME is None:  # asked for headers, of which we need none
        cpp_extension.CUDA_HOME = "/nonexistent"
    compile_kernel: Any = torch.cuda._compile_kernel
    kernel = compile_kernel(_TRAP, "trap")
    unused = torch.zeros(1, dtype=torch.int32, device=_DEVICE)
    kernel(grid=(1, 1, 1), block=(1, 1, 1), args=[unused])
    torch.cuda.synchronize(_DEVICE)


def hang() -> None:
    """Never ends: a kernel that spins."""
    torch.cuda._sleep(_MOST_CYCLES)
    torch.cuda.synchronize(_DEVICE)


def out_of_memory() -> None:
    """Raises OutOfMemoryError; the context stays whole."""
    torch.empty(_TOO_MANY_BYTES, dtype=torch.uint8, device=_DEVICE)


class _Claim:
    """More elements than the tensor has, by the interface that torch takes on trust."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self.__cuda_array_interface__ = {
            "shape": (_FAR,),
            "typestr": "<f4",
            "data": (tensor.data_ptr(), False),
            "version": 3,
        }
