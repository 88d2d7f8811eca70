"""What kind of fault an error is, and whom it charges: pure, and without torch.

Device process, which judges what a forward raised, and supervisor, which decides what a
death means. The evidence in its order, the first that speaks decides:

    1. type      what was typed where it was raised, or names its class by itself
    2. code      the cudaError number
    3. text      of every line of the cause chain; the worst line counts (S05)
    4. weak      types and texts of plain mistakes, when nothing above spoke
    5. default   DEVICE

Invariant: a healthy look never outweighs a sign of a poisoned context: a ValueError
that wraps a CUDA error is the CUDA error. What only the default decides, the device
may still clear by its probe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from neurond import startups


class FaultClass(StrEnum):
    """Who must act: caller, whoever adds room, we, this device, its group, a peer."""

    CLIENT = "client"
    CAPACITY = "capacity"
    HOST = "host"
    DEVICE = "device"
    GROUP = "group"
    PEER = "peer"


Evidence = Literal["type", "code", "text", "weak", "default"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """A class and what it rests on."""

    fault_class: FaultClass
    evidence: Evidence


FATAL = frozenset({FaultClass.DEVICE, FaultClass.GROUP})
"""The process must end."""

_FATAL_TYPES = {
    "DeviceFault": FaultClass.DEVICE,
    "DistError": FaultClass.GROUP,
    "DistBackendError": FaultClass.GROUP,
    "DistNetworkError": FaultClass.GROUP,
    "DistStoreError": FaultClass.GROUP,
}
_CUDA_TYPE = "AcceleratorError"
_OWN_TYPES = {
    "PeerLost": FaultClass.PEER,
    "ClientError": FaultClass.CLIENT,
    "CapacityError": FaultClass.CAPACITY,
    "HostError": FaultClass.HOST,
}
_WEAK_TYPES = {
    "OutOfMemoryError": FaultClass.CAPACITY,
    "MemoryError": FaultClass.CAPACITY,
    "ConnectionError": FaultClass.PEER,
    "LinkClosed": FaultClass.PEER,
    "ChannelBroken": FaultClass.PEER,
    "TemplateError": FaultClass.CLIENT,  # jinja2's
    "UnidentifiedImageError": FaultClass.CLIENT,
    "DecompressionBombError": FaultClass.CLIENT,
} | dict.fromkeys(
    (
        "ArithmeticError",
        "AssertionError",
        "AttributeError",
        "ImportError",
        "LookupError",
        "IndexError",
        "KeyError",
        "NameError",
        "NotImplementedError",
        "OSError",
        "RecursionError",
        "TypeError",
        "ValueError",
    ),
    FaultClass.HOST,
)

_ECC, _NVLINK, _CONTAINED = 214, 220, 226
_HARMLESS_CODES: dict[int, FaultClass] = {2: FaultClass.CAPACITY} | dict.fromkeys(
    # a launch that asks too much, calls misused, a graph capture gone wrong
    (701, 1, 9, 98, 101, 400, *range(900, 909)),
    FaultClass.HOST,
)
_POISON_TEXTS = {
    # cudaGetErrorString; "device-side assert" alone stands in torch's advice, too
    "an illegal memory access was encountered": 700,
    "the launch timed out and was terminated": 702,
    "context is destroyed": 709,
    "device-side assert triggered": 710,
    "hardware stack error": 714,
    "an illegal instruction was encountered": 715,
    "misaligned address": 716,
    "operation not supported on global/shared address space": 717,
    "invalid program counter": 718,
    "unspecified launch failure": 719,
    "uncorrectable ecc error": _ECC,
    "uncorrectable nvlink error": _NVLINK,
}
_NO_ROOM = re.compile(
    r"cublas_status_alloc_failed"
    r"|(cuda error|cuda driver error|triton error \[cuda\]): out of memory"
    r"|defaultcpuallocator: (can't|not enough)"
    r"|\[errno 12\] cannot allocate memory"
)
_GROUP_TEXT = re.compile(r"\bgloo\b|\bnccl|\btcpstore\b")
_DEVICE_TEXT = re.compile(
    r"cuda error|cuda driver error|triton error \[cuda\]"
    r"|cublas|cudnn|cusolver|cusparse|cufft"
)
_MISTAKE_TEXT = re.compile(
    r"size of tensor a|shapes cannot be multiplied|is invalid for input"
    r"|must have same number of dimensions|same dtype|expected scalar type"
    r"|on the expected device|expected all tensors to be on the same device"
    r"|index out of range|out of bounds|sizes of tensors must match"
    r"|probability tensor contains|invalid multinomial distribution"
    r"|exceeds pos_embed|\bnan\b|tokenizer|textencodeinput"
)


def classify(
    type_names: Sequence[str], code: int | None, chain: Sequence[str]
) -> FaultClass:
    """`type_names` of the error's MRO, or of its whole chain; `chain` as "Type: text",
    outermost first; `code` a cudaError, None or negative without one."""
    return judge(type_names, code, chain).fault_class


def judge(
    type_names: Sequence[str], code: int | None, chain: Sequence[str]
) -> Judgement:
    """As `classify`, with what decided."""
    names = frozenset(type_names)
    number = None if code is None or code < 0 else code
    lines = [line.lower() for line in chain]
    evidence: tuple[tuple[Evidence, FaultClass | None], ...] = (
        ("type", _by_type(names, number)),
        ("code", _by_code(number, lines)),
        ("text", _by_text(lines)),
        ("weak", _by_weakness(names, lines)),
    )
    for kind, found in evidence:
        if found is not None:
            return Judgement(found, kind)
    return Judgement(FaultClass.DEVICE, "default")


def class_of_code(code: int) -> FaultClass:
    """A code that nobody listed is a fault of the device."""
    return _HARMLESS_CODES.get(code, FaultClass.DEVICE)


def charges(
    fault_class: FaultClass | str, code: int | None = None, chain: Sequence[str] = ()
) -> bool:
    """Whether a death makes suspects of the requests in its step.

    Hardware, drivers and dead peers charge nobody; without a code the texts tell.
    """
    if fault_class != FaultClass.DEVICE:
        return False
    known = _poisons(line.lower() for line in chain)
    codes = known if code is None or code < 0 else {*known, code}
    if startups.code_of(code, chain) is not None:
        return False
    return codes.isdisjoint({_ECC, _NVLINK, _CONTAINED})


def _by_type(names: frozenset[str], code: int | None) -> FaultClass | None:
    found = _first(_FATAL_TYPES, names)
    if found is None and code is None and _CUDA_TYPE not in names:
        found = _first(_OWN_TYPES, names)
    return found


def _by_code(code: int | None, lines: Sequence[str]) -> FaultClass | None:
    """A harmless code doesn't hide another line's poison."""
    if code is None:
        return None
    return FaultClass.DEVICE if _poisons(lines) else class_of_code(code)


def _by_text(lines: Sequence[str]) -> FaultClass | None:
    found = {_class_of_line(line) for line in lines}
    for fault_class in (FaultClass.GROUP, FaultClass.DEVICE, FaultClass.CAPACITY):
        if fault_class in found:
            return fault_class
    return None


def _class_of_line(line: str) -> FaultClass | None:
    if _GROUP_TEXT.search(line):
        return FaultClass.GROUP
    if _poisons([line]):
        return FaultClass.DEVICE
    if _NO_ROOM.search(line):
        return FaultClass.CAPACITY
    return FaultClass.DEVICE if _DEVICE_TEXT.search(line) else None


def _by_weakness(names: frozenset[str], lines: Sequence[str]) -> FaultClass | None:
    if _CUDA_TYPE in names:
        return None
    found = _first(_WEAK_TYPES, names)
    if found is None and any(_MISTAKE_TEXT.search(line) for line in lines):
        return FaultClass.HOST
    return found


def _poisons(lines: Iterable[str]) -> set[int]:
    """Codes whose texts stand in lower-case lines."""
    whole = "\n".join(lines)
    return {code for text, code in _POISON_TEXTS.items() if text in whole}


def _first(table: dict[str, FaultClass], names: frozenset[str]) -> FaultClass | None:
    """In the table's order, which goes from worse to better."""
    return next((table[name] for name in table if name in names), None)
