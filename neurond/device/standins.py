"""What a broken GPU does to a process, done without one.

Device process, torch-free. The errors bear torch's names, attributes and texts, as the
classifier goes by those; the ends of the process are real ones.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn


class AcceleratorError(RuntimeError):
    """A CUDA call or kernel failed."""

    def __init__(self, message: str, error_code: int) -> None:
        super().__init__(message)
        self.error_code = error_code


class OutOfMemoryError(RuntimeError):
    """The allocator has no room."""


START_FILE = "FAULT_CUDA_START_FILE"
"""Names a variable of the node: a file whose number fails the start of each device."""
_POISONS = {
    "device_assert": (710, "device-side assert triggered"),
    "illegal_access": (700, "an illegal memory access was encountered"),
    "launch_failure": (719, "unspecified launch failure"),
    "ecc": (214, "uncorrectable ECC error encountered"),
    "nvlink": (220, "uncorrectable NVLink error detected during the execution"),
}
POISONS = frozenset(_POISONS)
"""Behind one of these every call fails alike, until the process ends."""


def poison(kind: str) -> AcceleratorError:
    """The error that a context so poisoned raises."""
    code, text = _POISONS[kind]
    return AcceleratorError(f"CUDA error: {text}", code)


def fail_start() -> None:
    """Raises while the file that START_FILE names holds a cudaError."""
    path = os.environ.get(START_FILE)
    try:
        told = Path(path).read_text().strip() if path else ""
    except FileNotFoundError:
        return
    if told:
        text = f"Unexpected error from cudaGetDeviceCount(). Error {told}: not usable"
        raise RuntimeError(text)


def out_of_memory() -> NoReturn:
    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def wrong_shape() -> NoReturn:
    raise RuntimeError(
        "The size of tensor a (3960) must match the size of tensor b (2304) at "
        "non-singleton dimension 1"
    )


def hang() -> NoReturn:
    """In a call that holds the interpreter's lock: no thread of ours runs on."""
    library = ctypes.PyDLL(None)
    while True:
        library.pause()


ENDS: Mapping[str, Callable[[], object]] = MappingProxyType(
    {
        "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "segv": lambda: ctypes.string_at(0),
        "abort": os.abort,
        "hang": hang,
    }
)
"""None of these comes back."""
