"""What this host has: cores, memory, GPUs, and the devices that are made of them.

Supervisor, before it starts a device. NVML is asked by a throw-away child, because it
may block for ever when a GPU is bad; a child in uninterruptible sleep ignores even
SIGKILL, so it is killed, written off and never waited for.

    NVML child ─ JSON ─▶ [Gpu, …] ─▶ plan_devices ─▶ (DeviceSpec, …)

Invariant: `list_gpus` ends at its deadline, whatever the driver does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from ipc.process import PARENT_PID
from neurond import startups

DRIVER_NODE = Path("/dev/nvidiactl")
_NVML_CHILD = ("-m", "neurond.nvml", "--once")
_MAX_ERROR_CHARS = 500
_DEATH_S = 0.2


@dataclass(frozen=True, slots=True)
class HostFacts:
    """`cores` are those that we may run on; free memory is what could be had."""

    cores: int
    memory_total_bytes: int
    memory_free_bytes: int
    hostname: str


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or a MIG instance of one; `index` counts both in PCI order."""

    index: int
    uuid: str
    name: str
    pci: str
    memory_total_bytes: int
    mig: bool


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One device process to be; memory 0 = the budget that is configured."""

    device: str
    kind: str
    name: str
    uuid: str
    memory_total_bytes: int
    index: int


def host_facts() -> HostFacts:
    memory = psutil.virtual_memory()
    return HostFacts(
        cores=len(os.sched_getaffinity(0)),
        memory_total_bytes=memory.total,
        memory_free_bytes=memory.available,
        hostname=socket.gethostname(),
    )


def plan_devices(kind: str, count: int, gpus: Sequence[Gpu]) -> tuple[DeviceSpec, ...]:
    """`kind` auto, cpu, cuda or fake; `count` is for cpu and fake.

    Every GPU makes a device; none is an empty plan for "cuda" and the CPU for "auto".
    """
    chosen = ("cuda" if gpus else "cpu") if kind == "auto" else kind
    if chosen == "cuda":
        return tuple(_gpu_device(gpu) for gpu in gpus)
    return tuple(
        DeviceSpec(f"{chosen}-{index}", chosen, chosen.upper(), "", 0, index)
        for index in range(count)
    )


def find_devices(
    kind: str, count: int, deadline_s: float, *, driver_node: Path = DRIVER_NODE
) -> tuple[tuple[DeviceSpec, ...], str]:
    """The plan for this host, and what is wrong with CUDA; empty: nothing.

    A host whose GPUs can't be used until a reboot isn't one without GPUs: it gets no
    devices, so that nobody is served by its CPU unawares.
    """
    if kind not in ("auto", "cuda"):
        return plan_devices(kind, count, ()), ""
    gpus, complaint = list_gpus(deadline_s, driver_node=driver_node)
    problem = startups.of_nvml(complaint or "")
    wanted = "cuda" if startups.is_mismatch(problem) else kind
    return plan_devices(wanted, count, gpus), problem


def list_gpus(
    deadline_s: float, *, driver_node: Path = DRIVER_NODE
) -> tuple[list[Gpu], str | None]:
    """GPUs in PCI order, and why there may be fewer than the host has."""
    if not driver_node.exists():
        return [], None
    child = subprocess.Popen(
        [sys.executable, *_NVML_CHILD],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, PARENT_PID: str(os.getpid())},
    )
    try:
        answer, _ = child.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        _write_off(child)
        return [], f"NVML did not answer within {deadline_s:g} s"
    return _read(answer, child.returncode)


def _write_off(child: subprocess.Popen[bytes]) -> None:
    """Killed; if that has no effect, the supervisor reaps what ends later."""
    child.kill()
    if child.stdout is not None:
        child.stdout.close()
    try:
        child.wait(_DEATH_S)
    except subprocess.TimeoutExpired:
        child.returncode = -signal.SIGKILL  # nobody shall wait for it again


def _read(answer: bytes, exit_code: int) -> tuple[list[Gpu], str | None]:
    try:
        document = json.loads(answer)
        gpus = [Gpu(**entry) for entry in document["gpus"]]
    except (ValueError, KeyError, TypeError):
        return [], f"NVML's child ended without an answer (exit {exit_code})"
    error = document.get("error")
    return gpus, None if error is None else str(error)[:_MAX_ERROR_CHARS]


def _gpu_device(gpu: Gpu) -> DeviceSpec:
    return DeviceSpec(
        device=f"gpu-{gpu.index}",
        kind="cuda",
        name=gpu.name,
        uuid=gpu.uuid,
        memory_total_bytes=gpu.memory_total_bytes,
        index=gpu.index,
    )
