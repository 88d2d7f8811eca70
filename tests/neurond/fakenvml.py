"""A stand-in for nvidia-ml-py, put before it on the PYTHONPATH of real children.

The host that it plays is JSON in FAKE_NVML: {"gpus": [gpu, …], "init_error"?, "hang"?,
"events"?}. `events` is a file that a test appends lines to, each of them JSON:
{"gpu": index, "xid"?: number, and what the GPU shows from then on}.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

GIB = 1 << 30

MODULE = """
import json, os, time
from types import SimpleNamespace as Bag

HOST = json.loads(os.environ["FAKE_NVML"])


nvmlEventTypeXidCriticalError = 8


class NVMLError(Exception):
    value = 3


class Timeout(NVMLError):
    value = 10


def nvmlInit():
    if HOST.get("hang"):
        time.sleep(600)
    if "init_error" in HOST:
        raise NVMLError(HOST["init_error"])


def _of(handle, key):
    if key not in handle:
        raise NVMLError("Not Supported")
    return handle[key]


def nvmlDeviceGetCount():
    return len(HOST["gpus"])


def nvmlDeviceGetHandleByIndex(index):
    if HOST["gpus"][index].get("lost"):
        raise NVMLError("GPU is lost")
    return HOST["gpus"][index]


def nvmlDeviceGetPciInfo(handle):
    return Bag(busId=handle["pci"].encode())


def nvmlDeviceGetUUID(handle):
    return handle["uuid"]


def nvmlDeviceGetName(handle):
    return handle["name"].encode()


def nvmlDeviceGetMemoryInfo(handle):
    if handle.get("gone"):
        raise NVMLError("GPU is lost")
    total, free = _of(handle, "memory")
    return Bag(total=total, free=free)


def nvmlDeviceGetMigMode(handle):
    return [_of(handle, "mig"), 0]


def nvmlDeviceGetMaxMigDeviceCount(handle):
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle, index):
    if index >= len(handle["instances"]) or handle["instances"][index] is None:
        raise NVMLError("Not Found")
    return handle["instances"][index]


def nvmlDeviceGetUtilizationRates(handle):
    return Bag(gpu=_of(handle, "utilisation"), memory=0)


def nvmlDeviceGetTemperature(handle, sensor):
    assert sensor == 0
    return _of(handle, "temperature")


def nvmlDeviceGetPowerUsage(handle):
    return _of(handle, "power_mw")


def nvmlDeviceGetComputeRunningProcesses(handle):
    return [Bag(pid=p, usedGpuMemory=b) for p, b in _of(handle, "processes")]


def nvmlDeviceGetFieldValues(handle, fields):
    known = "recovery" in handle and fields == [230]
    return [Bag(nvmlReturn=0 if known else 3, value=Bag(uiVal=handle.get("recovery")))]


def nvmlDeviceGetRemappedRows(handle):
    return [0, 0, *_of(handle, "remapped")]


def nvmlEventSetCreate():
    if "events" not in HOST:
        raise NVMLError("Not Supported")
    return Bag(handles=[], lines=open(HOST["events"]))


def nvmlDeviceRegisterEvents(handle, types, events):
    assert types == 8
    events.handles.append(handle)


def nvmlEventSetWait_v2(events, timeout_ms):
    until = time.monotonic() + timeout_ms / 1000
    while True:
        line = events.lines.readline()
        if line:
            told = json.loads(line)
            gpu = HOST["gpus"][told.pop("gpu")]
            xid = told.pop("xid", None)
            gpu.update(told)
            if gpu.get("blocks"):
                time.sleep(600)
            if xid is not None:
                return Bag(device=gpu, eventType=8, eventData=xid)
        elif time.monotonic() >= until:
            raise Timeout("Timeout")
        else:
            time.sleep(0.002)
"""


def gpu(uuid: str, pci: str, **more: Any) -> dict[str, Any]:
    """A GPU with 80 GiB, half of them free."""
    memory = [80 * GIB, 40 * GIB]
    return {"uuid": uuid, "pci": pci, "name": "Fake H", "memory": memory, **more}


def environ(folder: Path, host: dict[str, Any]) -> dict[str, str]:
    """Variables for a child that shall meet this host."""
    (folder / "pynvml.py").write_text(MODULE)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "FAKE_NVML": json.dumps(host)}
