"""What each Xid of the NVIDIA driver means to us: its class, who pays, what we do.

Supervisor; data, pure. One row per number of NVIDIA's catalogue (A100 and newer); the
class says who is charged (only `app` makes suspects), the measure what happens. The
driver's own recovery action, where it has one, is authoritative.

Source: https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html and
https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/error-recovery-and-response-flags.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum


class XidClass(StrEnum):
    """Whose fault it is; an echo follows something else and means nothing alone."""

    APP = "app"
    APP_ECHO = "app echo"
    ECHO = "echo"
    HW_SOFT = "hw-soft"
    HW_HARD = "hw-hard"
    ECC = "ecc"
    ECC_INFO = "ecc-info"
    ECC_CONTAINED = "ecc-contained"
    LINK = "link"
    LOST = "lost"
    RECOVERY = "recovery"
    UNKNOWN = "unknown"


class Measure(IntEnum):
    """What is done to a device, in the order in which one overrules another."""

    WATCH = 0  # count and show
    RESPAWN = 1  # a new process
    GROUP = 2  # new processes for all ranks
    DRAIN_OUT = 3  # no device any more, once it has nothing to do
    OUT = 4  # no device any more, at once


class Cure(IntEnum):
    """What an operator must do, the gentler one first."""

    NONE = 0
    RESET = 1
    IMEX = 2
    REBOOT = 3

    @property
    def command(self) -> str:
        return _COMMANDS[self]


_COMMANDS = {
    Cure.NONE: "",
    Cure.RESET: "reset the GPU (nvidia-smi --gpu-reset -i INDEX)",
    Cure.IMEX: "restart the IMEX domain (systemctl restart nvidia-imex)",
    Cure.REBOOT: "reboot the host",
}


@dataclass(frozen=True, slots=True)
class Xid:
    """`whole_gpu`: it concerns every process there, whoever caused it.

    `by_recovery`: the driver's recovery action says whether `measure` is needed at all;
    where it says that none is, a new process is enough.
    """

    what: str
    kind: XidClass
    measure: Measure = Measure.WATCH
    cure: Cure = Cure.NONE
    whole_gpu: bool = False
    by_recovery: bool = False

    @property
    def charges(self) -> bool:
        """Whether whoever ran is a suspect."""
        return self.kind is XidClass.APP

    @property
    def spares(self) -> bool:
        """Whether it is known that nobody who ran is to blame."""
        return self.kind in _NOBODYS


_NOBODYS = frozenset(
    {
        XidClass.HW_SOFT,
        XidClass.HW_HARD,
        XidClass.ECC,
        XidClass.ECC_CONTAINED,
        XidClass.LINK,
        XidClass.LOST,
    }
)
_C, _M = XidClass, Measure


def _rows(numbers: tuple[int, ...], row: Xid) -> dict[int, Xid]:
    return dict.fromkeys(numbers, row)


_HARD = Xid(
    "timeout or halt of a controller", _C.HW_HARD, _M.OUT, Cure.RESET, True, True
)
_LINK_5 = Xid("NVLink 5 or link training", _C.LINK, _M.GROUP, Cure.RESET, True)
_DRIVER = Xid("firmware, context switch or driver access", _C.ECHO)
_SINGLE_BITS = Xid("many single-bit errors or a worn InfoROM", _C.ECC_INFO)
_UNCONTAINED = Xid("uncontained memory error", _C.ECC, _M.OUT, Cure.RESET, True)
_CONTEXT = Xid("invalid commands of a process", _C.APP, _M.RESPAWN)
UNKNOWN = Xid("not in our table", _C.UNKNOWN)

XIDS: Mapping[int, Xid] = {
    13: Xid("engine exception", _C.APP, _M.RESPAWN),
    31: Xid("page fault, an illegal memory access", _C.APP, _M.RESPAWN),
    **_rows((8, 11, 25, 32, 69), _CONTEXT),
    **_rows(
        (39, 40, 41, 68, 77),
        Xid("copy engine or video decoder", _C.HW_SOFT, _M.RESPAWN),
    ),
    43: Xid("channel reset, processing stopped", _C.APP_ECHO, _M.RESPAWN),
    45: Xid("clean-up after a kill or another error", _C.ECHO),
    **_rows((37, 38, 44, 66, 67), _DRIVER),
    **_rows((46, 62, 109, 110, 119, 120, 143, 158), _HARD),
    48: Xid("double-bit memory error", _C.ECC, _M.OUT, Cure.RESET, True, True),
    63: Xid("row remap recorded", _C.ECC_INFO, _M.WATCH, Cure.RESET, True),
    64: Xid("row remap failed", _C.ECC, _M.DRAIN_OUT, Cure.RESET, True),
    157: Xid("row retirement failed", _C.ECC_INFO, whole_gpu=True),
    **_rows((92, 93), _SINGLE_BITS),
    94: Xid("contained memory error", _C.ECC_CONTAINED, _M.RESPAWN),
    **_rows((95, 140), _UNCONTAINED),
    156: Xid("resource retired", _C.ECC_INFO, _M.DRAIN_OUT, Cure.RESET, True),
    **_rows((171, 172), Xid("detail of a double-bit memory error", _C.ECHO)),
    74: Xid("NVLink error", _C.LINK, _M.GROUP, whole_gpu=True),
    137: Xid("NVLink privilege error", _C.APP_ECHO, _M.GROUP),
    **_rows((136, *range(144, 151), 155), _LINK_5),
    79: Xid("fallen off the bus", _C.LOST, _M.OUT, Cure.REBOOT, True),
    154: Xid("recovery action changed", _C.RECOVERY, whole_gpu=True),
    151: Xid("key rotation", _C.LOST, _M.OUT, Cure.REBOOT, True),
    **_rows((121, *range(159, 171)), UNKNOWN),
}
OFF_THE_BUS = 79
REMAP_RECORDED = 63
REMAP_FAILED = 64
CLEAN_UP = 45
DOUBLE_BIT = 48
WITH_DOUBLE_BIT = frozenset({63, 64, 95})
"""Beside a 48, a reset is needed whatever the recovery action says."""


def row(xid: int) -> Xid:
    """What a number means; one that nobody listed is unknown."""
    return XIDS.get(xid, UNKNOWN)


_RECOVERIES: Mapping[int, tuple[Measure, Cure]] = {
    0: (_M.WATCH, Cure.NONE),
    1: (_M.OUT, Cure.RESET),
    2: (_M.OUT, Cure.REBOOT),
    3: (_M.GROUP, Cure.NONE),
    4: (_M.DRAIN_OUT, Cure.RESET),
    5: (_M.OUT, Cure.IMEX),
    6: (_M.OUT, Cure.RESET),
    7: (_M.OUT, Cure.REBOOT),
}


def recovery(action: int) -> tuple[Measure, Cure]:
    """What the driver's recovery action asks for; an unknown one counts as 2."""
    return _RECOVERIES.get(action, _RECOVERIES[2])


# ---- where they come from besides NVML's events

_KERNEL = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)(?:,.*?pid='?(\d+))?")
_OFF_BUS = re.compile(
    r"NVRM: .*?\b([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.\d)?)\b"
    r".*fallen off the bus"
)


@dataclass(frozen=True, slots=True)
class Sighting:
    """An Xid as it was seen. `pid` None: not told; `recovery` None: the driver has
    none. `others`: processes that aren't ours were on the GPU, so without a pid it
    may be theirs."""

    xid: int
    pid: int | None = None
    recovery: int | None = None
    others: bool = False


def kernel_line(line: str) -> tuple[str, Sighting] | None:
    """PCI address, as `bus_of` has it, and Xid of a line of the kernel's log.

    A GPU can fall off the bus with the text alone.
    """
    if found := _KERNEL.search(line):
        pci, number, pid = found.groups()
        return bus_of(pci), Sighting(int(number), int(pid) if pid else None)
    if found := _OFF_BUS.search(line):
        return bus_of(found.group(1)), Sighting(OFF_THE_BUS)
    return None


def bus_of(pci: str) -> str:
    """Domain, bus and device in one spelling: NVML pads the domain to 8 digits, the
    kernel to 4, and only one of them names the function."""
    domain, bus, device = pci.lower().split(":")[-3:]
    return f"{int(domain, 16):04x}:{bus}:{device.split('.')[0]}"


def told(kind: str) -> Sighting:
    """A simulated one: `xid:48`, `xid:48,recovery=1`, `xid:13,pid=7`, `xid:13,others`.

    Raises ValueError.
    """
    head, *rest = kind.removeprefix("xid:").split(",")
    fields = dict(part.partition("=")[::2] for part in rest)
    if not kind.startswith("xid:") or not fields.keys() <= {
        "pid",
        "recovery",
        "others",
    }:
        raise ValueError(f"{kind!r} is not xid:NUMBER[,recovery=N][,pid=N][,others]")
    return Sighting(
        int(head),
        pid=int(fields["pid"]) if "pid" in fields else None,
        recovery=int(fields["recovery"]) if "recovery" in fields else None,
        others="others" in fields,
    )
