"""The one process that talks to NVML: an inventory once, or readings once a second.

Child of the supervisor. NVML may block for ever when a GPU is bad; then this process
hangs, its silence is noticed, and nobody else is held up.

    python -m neurond.nvml --once     stdout: {"gpus": […], "error"?: "what is missing"}
    python -m neurond.nvml --fd N     SEQPACKET: one msgpack map per second, or sooner
        gpus: uuid → {memory_total_bytes, memory_free_bytes, utilisation, temperature_c,
                      power_w, processes: [[pid, bytes], …], recovery_action, remap}
        xids: [[uuid, number, pid or None], …], each until it could be sent

A reading that a GPU doesn't offer is None, one that failed altogether {"error": "…",
"lost": fell off the bus}. `remap`: "pending" or "failed" when rows of memory are.
MIG instances stand for their parent, which can't compute beside them.

Invariant: nothing here changes a GPU; resets are for operators.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ipc.child import EXIT_OK
from ipc.process import die_with_parent, set_title
from neurond.discovery import Gpu

TITLE = "neurond: nvml"
INTERVAL_S = 1.0
_TIMEOUT = 10
"""NVML_ERROR_TIMEOUT."""
_RECOVERY_ACTION = 230
"""NVML_FI_DEV_GET_GPU_RECOVERY_ACTION; not in every release of the bindings."""


class NvmlError(Exception):
    """The library is missing, or the driver refused."""


class Nvml:
    """The library with only what we ask of it; its own errors become NvmlError."""

    def __init__(self, library: Any) -> None:
        self._lib = library
        self.errors: list[str] = []

    def gpus(self) -> list[tuple[Gpu, Any]]:
        """Each with its handle, in PCI order; what is lost stands in `errors`."""
        found: list[tuple[Gpu, Any]] = []
        for pci, parent in self._parents():
            instances = self._instances(parent)
            for handle in [parent] if instances is None else instances:
                try:
                    gpu = self._gpu(len(found), handle, pci, instances is not None)
                except NvmlError as error:
                    self.errors.append(f"{pci}: {error}")
                else:
                    found.append((gpu, handle))
        return found

    def reading(self, handle: Any) -> dict[str, Any]:
        try:
            memory = self._ask("DeviceGetMemoryInfo", handle)
        except NvmlError as error:
            return {"error": str(error), "lost": "GPU is lost" in str(error)}
        power_mw = self._try("DeviceGetPowerUsage", handle)
        utilisation = self._try("DeviceGetUtilizationRates", handle)
        return {
            "memory_total_bytes": memory.total,
            "memory_free_bytes": memory.free,
            "utilisation": None if utilisation is None else utilisation.gpu / 100,
            "temperature_c": self._try("DeviceGetTemperature", handle, 0),  # the die's
            "power_w": None if power_mw is None else power_mw / 1000,
            "processes": self._processes(handle),
            "recovery_action": self._recovery_action(handle),
            "remap": self._remap(handle),
        }

    def register_events(self) -> Any:
        """A set in which the Xids of every GPU arrive; None: there are none to have."""
        try:
            events = self._ask("EventSetCreate")
        except NvmlError:
            return None
        critical = getattr(self._lib, "nvmlEventTypeXidCriticalError", 8)
        found = [
            self._registered(handle, critical, events) for _, handle in self._parents()
        ]
        return events if any(found) else None

    def _registered(self, handle: Any, types: int, events: Any) -> bool:
        try:
            self._ask("DeviceRegisterEvents", handle, types, events)
        except NvmlError:
            return False
        return True

    def event(self, events: Any, timeout_ms: int) -> tuple[str, int] | None:
        """PCI address and Xid of the next one; None: none came in time."""
        try:
            data = self._lib.nvmlEventSetWait_v2(events, timeout_ms)
        except self._lib.NVMLError as error:
            if getattr(error, "value", None) == _TIMEOUT:
                return None
            raise NvmlError(f"EventSetWait: {error}") from error
        return self._pci(data.device), int(data.eventData)

    def _recovery_action(self, handle: Any) -> int | None:
        whole = self._try("DeviceGetDeviceHandleFromMigDeviceHandle", handle) or handle
        fields = self._try("DeviceGetFieldValues", whole, [_RECOVERY_ACTION])
        if not fields or fields[0].nvmlReturn != 0:
            return None
        return int(fields[0].value.uiVal)

    def _remap(self, handle: Any) -> str | None:
        rows = self._try("DeviceGetRemappedRows", handle)
        if not rows:
            return None
        return "failed" if rows[3] else "pending" if rows[2] else None

    def _processes(self, handle: Any) -> list[list[int]]:
        running = self._try("DeviceGetComputeRunningProcesses", handle) or []
        return [[entry.pid, entry.usedGpuMemory or 0] for entry in running]

    def _parents(self) -> list[tuple[str, Any]]:
        found = []
        for index in range(self._ask("DeviceGetCount")):
            try:
                handle = self._ask("DeviceGetHandleByIndex", index)
                found.append((self._pci(handle), handle))
            except NvmlError as error:  # lost; the others are not
                self.errors.append(f"GPU {index}: {error}")
        return sorted(found, key=lambda pair: pair[0])

    def _instances(self, parent: Any) -> list[Any] | None:
        """None: MIG is off, or unknown to this GPU."""
        mode = self._try("DeviceGetMigMode", parent)
        if not mode or not mode[0]:
            return None
        places = range(self._ask("DeviceGetMaxMigDeviceCount", parent))
        found = [
            self._try("DeviceGetMigDeviceHandleByIndex", parent, i) for i in places
        ]
        return [handle for handle in found if handle is not None]

    def _gpu(self, index: int, handle: Any, pci: str, mig: bool) -> Gpu:
        return Gpu(
            index=index,
            uuid=_text(self._ask("DeviceGetUUID", handle)),
            name=_text(self._ask("DeviceGetName", handle)),
            pci=pci,
            memory_total_bytes=self._ask("DeviceGetMemoryInfo", handle).total,
            mig=mig,
        )

    def _pci(self, handle: Any) -> str:
        return _text(self._ask("DeviceGetPciInfo", handle).busId).lower()

    def _ask(self, name: str, *args: Any) -> Any:
        """Raises NvmlError."""
        function = getattr(self._lib, f"nvml{name}", None)
        if function is None:
            raise NvmlError(f"{name}: not in this release of the bindings")
        try:
            return function(*args)
        except self._lib.NVMLError as error:
            raise NvmlError(f"{name}: {error}") from error

    def _try(self, name: str, *args: Any) -> Any:
        """None: this GPU doesn't offer it."""
        try:
            return self._ask(name, *args)
        except NvmlError:
            return None


def _text(value: str | bytes) -> str:
    """Older bindings answer with bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


@contextmanager
def opened() -> Iterator[Nvml]:
    """Raises NvmlError."""
    try:
        import pynvml
    except ImportError as error:
        raise NvmlError("the package nvidia-ml-py is not installed") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlError(f"NVML could not be initialised: {error}") from error
    yield Nvml(pynvml)  # never shut down: the process's end does it, and can't hang


def inventory() -> dict[str, Any]:
    """The document of `--once`."""
    try:
        with opened() as nvml:
            gpus = [asdict(gpu) for gpu, _ in nvml.gpus()]
    except NvmlError as error:
        return {"gpus": [], "error": str(error)}
    return {"gpus": gpus} | ({"error": "; ".join(nvml.errors)} if nvml.errors else {})


def main() -> int:
    die_with_parent()
    set_title(TITLE)
    parser = argparse.ArgumentParser(prog="python -m neurond.nvml")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--once", action="store_true")
    what.add_argument("--fd", type=int)
    parser.add_argument("--interval-s", type=float, default=INTERVAL_S)
    parser.add_argument("--kernel-log", type=Path, default=Path("/dev/kmsg"))
    args = parser.parse_args()
    if args.once:
        print(json.dumps(inventory()), flush=True)
        return EXIT_OK
    from neurond import nvmlwatch  # which needs this module by its name

    return nvmlwatch.run(args.fd, args.interval_s, args.kernel_log)


if __name__ == "__main__":
    sys.exit(main())
