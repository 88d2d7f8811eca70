"""CUDA can't be used at all: why, what cures it, and whether to try again.

Supervisor; data, pure. A driver that was updated without a reboot never comes right by
itself; a fabric manager that isn't ready yet does (S18, S39).

Source: cudaError_t in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Retry(StrEnum):
    """`normal`: as after any death; `patient`: however often it takes."""

    NEVER = "never"
    NORMAL = "normal"
    PATIENT = "patient"


@dataclass(frozen=True, slots=True)
class StartUp:
    """`texts`: in lower case, as CUDA and torch put it when they give no number."""

    what: str
    cure: str
    retry: Retry
    texts: tuple[str, ...]


_REBOOT = "the driver was updated without a reboot or doesn't fit this CUDA: reboot"
STARTUPS: Mapping[int, StartUp] = {
    3: StartUp(
        "CUDA could not be initialised",
        "look at nvidia-smi and the kernel's log",
        Retry.NORMAL,
        ("cuda error: initialization error",),
    ),
    35: StartUp(
        "the driver is older than this CUDA",
        "update the driver, then reboot the host",
        Retry.NEVER,
        ("driver version is insufficient", "nvidia driver on your system is too old"),
    ),
    46: StartUp(
        "the GPU is busy or unavailable",
        "end what holds it in exclusive mode (nvidia-smi -q -d COMPUTE)",
        Retry.PATIENT,
        ("cuda-capable device(s) is/are busy or unavailable",),
    ),
    100: StartUp(
        "CUDA sees no GPU",
        "load the driver (nvidia-smi) and look at CUDA_VISIBLE_DEVICES",
        Retry.NORMAL,
        (
            "no cuda-capable device is detected",
            "no cuda gpus are available",
            "found no nvidia driver",
        ),
    ),
    127: StartUp(
        "CUDA's runtime failed to start",
        "look at nvidia-smi and the kernel's log",
        Retry.NORMAL,
        ("startup failure in cuda runtime",),
    ),
    802: StartUp(
        "the fabric manager is not ready",
        "wait, or start it (systemctl start nvidia-fabricmanager)",
        Retry.PATIENT,
        ("system not yet initialized",),
    ),
    803: StartUp(
        "driver and CUDA disagree",
        f"{_REBOOT} the host",
        Retry.NEVER,
        ("unsupported display driver / cuda driver combination",),
    ),
    804: StartUp(
        "this GPU doesn't run a CUDA newer than its driver",
        "remove the compatibility package or update the driver",
        Retry.NEVER,
        ("forward compatibility was attempted on non supported hw",),
    ),
    805: StartUp(
        "the MPS daemon doesn't answer",
        "start it (nvidia-cuda-mps-control -d)",
        Retry.NORMAL,
        ("mps client failed to connect",),
    ),
}
_NUMBER = re.compile(r"\berror (\d{1,3}): ")
_MISMATCH = re.compile(r"version mismatch", re.IGNORECASE)


def code_of(code: int | None, chain: Sequence[str]) -> int | None:
    """The start-up code of an error; None: it is another kind of error.

    torch raises a plain RuntimeError with the number or the words in its text.
    """
    if code is not None and code >= 0:
        return code if code in STARTUPS else None
    text = "\n".join(chain).lower()
    numbers = [int(number) for number in _NUMBER.findall(text)]
    worded = [
        number
        for number, row in STARTUPS.items()
        if any(words in text for words in row.texts)
    ]
    return next((n for n in (*numbers, *worded) if n in STARTUPS), None)


def of_nvml(problem: str) -> str:
    """What NVML complains about at the start, with the cure where there is one."""
    if not is_mismatch(problem):
        return problem
    return f"{problem}: {STARTUPS[803].cure}"


def is_mismatch(problem: str) -> bool:
    """NVML and the loaded driver disagree: no CUDA until a reboot."""
    return _MISMATCH.search(problem) is not None
