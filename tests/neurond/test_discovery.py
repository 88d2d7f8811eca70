from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from neurond.discovery import (
    Gpu,
    find_devices,
    host_facts,
    list_gpus,
    plan_devices,
)
from tests.neurond.fakenvml import GIB, environ, gpu

GPUS = (
    Gpu(0, "GPU-a", "H", "0000:03:00.0", 80 * GIB, mig=False),
    Gpu(1, "MIG-b", "H 1g", "0000:04:00.0", 10 * GIB, mig=True),
)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    path = tmp_path / "nvidiactl"
    path.touch()
    return path


def play(monkeypatch: pytest.MonkeyPatch, folder: Path, host: dict[str, Any]) -> None:
    for name, value in environ(folder, host).items():
        monkeypatch.setenv(name, value)


def test_the_host_is_what_this_process_may_use() -> None:
    facts = host_facts()
    assert facts.cores == len(os.sched_getaffinity(0))
    assert 0 < facts.memory_free_bytes <= facts.memory_total_bytes
    assert facts.hostname == os.uname().nodename


def test_auto_takes_every_gpu_and_else_the_cpu() -> None:
    assert [d.device for d in plan_devices("auto", 3, GPUS)] == ["gpu-0", "gpu-1"]
    assert [d.device for d in plan_devices("auto", 2, ())] == ["cpu-0", "cpu-1"]


def test_a_gpu_device_is_known_by_its_uuid() -> None:
    spec = plan_devices("cuda", 1, GPUS)[1]
    assert (spec.kind, spec.uuid, spec.name, spec.index) == ("cuda", "MIG-b", "H 1g", 1)
    assert spec.memory_total_bytes == 10 * GIB


def test_cuda_without_gpus_is_no_device_at_all() -> None:
    assert plan_devices("cuda", 1, ()) == ()


@pytest.mark.parametrize("kind", ["cpu", "fake"])
def test_cpu_and_fake_are_counted_and_ignore_gpus(kind: str) -> None:
    plan = plan_devices(kind, 2, GPUS)
    assert [(d.device, d.kind) for d in plan] == [
        (f"{kind}-0", kind),
        (f"{kind}-1", kind),
    ]


def test_without_a_driver_no_child_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent")
    assert list_gpus(1, driver_node=tmp_path / "none") == ([], None)


def test_gpus_come_in_pci_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: Path
) -> None:
    host = {"gpus": [gpu("GPU-z", "0000:0A:00.0"), gpu("GPU-y", "0000:03:00.0")]}
    play(monkeypatch, tmp_path, host)
    found, error = list_gpus(10, driver_node=node)
    assert error is None
    assert found == [
        Gpu(0, "GPU-y", "Fake H", "0000:03:00.0", 80 * GIB, mig=False),
        Gpu(1, "GPU-z", "Fake H", "0000:0a:00.0", 80 * GIB, mig=False),
    ]


def test_mig_instances_stand_for_their_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: Path
) -> None:
    slices = [gpu("MIG-1", "", memory=[GIB, GIB]), None, gpu("MIG-2", "")]
    parent = gpu("GPU-p", "0000:03:00.0", mig=1, instances=slices)
    plain = gpu("GPU-q", "0000:04:00.0", mig=0)
    play(monkeypatch, tmp_path, {"gpus": [plain, parent]})
    found, _ = list_gpus(10, driver_node=node)
    assert [(g.index, g.uuid, g.mig) for g in found] == [
        (0, "MIG-1", True),
        (1, "MIG-2", True),
        (2, "GPU-q", False),
    ]
    assert found[0].memory_total_bytes == GIB
    assert found[1].pci == "0000:03:00.0"


def test_a_lost_gpu_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: Path
) -> None:
    lost, mute = gpu("GPU-l", "0000:03:00.0", lost=True), gpu("GPU-m", "0000:04:00.0")
    del mute["memory"]
    play(monkeypatch, tmp_path, {"gpus": [lost, mute, gpu("GPU-q", "0000:05:00.0")]})
    found, error = list_gpus(10, driver_node=node)
    assert [(g.index, g.uuid) for g in found] == [(0, "GPU-q")]
    assert error is not None
    assert "GPU 0: DeviceGetHandleByIndex: GPU is lost" in error
    assert "0000:04:00.0: DeviceGetMemoryInfo: Not Supported" in error


def test_a_driver_mismatch_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: Path
) -> None:
    play(monkeypatch, tmp_path, {"init_error": "Driver/library version mismatch"})
    found, error = list_gpus(10, driver_node=node)
    assert found == []
    assert error == "NVML could not be initialised: Driver/library version mismatch"


def test_nvml_that_hangs_costs_a_child_and_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: Path
) -> None:
    play(monkeypatch, tmp_path, {"hang": True})
    before_s = time.monotonic()
    found, error = list_gpus(0.5, driver_node=node)
    assert time.monotonic() - before_s < 3
    assert (found, error) == ([], "NVML did not answer within 0.5 s")


def test_a_child_that_dies_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: Path
) -> None:
    play(monkeypatch, tmp_path, {})
    (tmp_path / "pynvml.py").write_text("import os; os.abort()")
    found, error = list_gpus(10, driver_node=node)
    assert (found, error) == ([], "NVML's child ended without an answer (exit -6)")


def test_s18_a_driver_that_was_updated_means_no_device_and_names_the_cure(
    tmp_path: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, tmp_path, {"init_error": "Driver/library version mismatch"})
    specs, problem = find_devices("auto", 2, 10.0, driver_node=node)
    assert specs == ()
    assert problem.endswith("reboot the host")
    assert find_devices("cpu", 1, 10.0, driver_node=node)[1] == ""


def test_another_complaint_leaves_a_host_its_cpu(
    tmp_path: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, tmp_path, {"init_error": "Insufficient Permissions"})
    specs, problem = find_devices("auto", 1, 10.0, driver_node=node)
    assert [spec.device for spec in specs] == ["cpu-0"]
    assert "Insufficient Permissions" in problem
