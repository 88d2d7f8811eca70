from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ipc.messages import (
    Fault,
    Finished,
    Hello,
    Load,
    LoadFailed,
    Unload,
    Unloaded,
)
from ipc.status import Phase
from tests.neurond.device.rig import Rig, error_code, wait_for


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("nan", "nan_logits"),
        ("shape", "internal_error"),
        ("host_error", "internal_error"),
        ("oom", "insufficient_vram"),
    ],
)
def test_s02_a_request_error_ends_that_request_only(
    rig: Rig, tmp_path: Path, fault: str, code: str
) -> None:
    side = rig.ready(tmp_path / "fake", step_ms=1)
    side.ask(1, "[[fake tokens=40]]")
    side.ask(2, f"[[fake tokens=40 fault={fault} at=3]]")
    assert error_code(side.wait_end(2)) == code
    assert side.text(2) == "w0 "
    assert isinstance(side.wait_end(1), Finished)
    assert len(side.ids(1)) == 40
    assert side.answer(3, "next") == "echo: next"
    journal = rig.journal()
    assert journal.count("model NOT marked poisoned") == 1
    assert "model=m, request=2" in journal


def test_a_device_assert_is_told_on_the_link_before_exit_111(
    rig: Rig, tmp_path: Path
) -> None:
    side = rig.ready(tmp_path / "fake", step_ms=1)
    side.ask(5, "[[fake tokens=9 fault=device_assert at=2]]")
    assert rig.wait_exit() == 111
    fault = rig.wait_report(Fault)
    assert (fault.fault_class, fault.type, fault.code) == (
        "device",
        "AcceleratorError",
        710,
    )
    assert (fault.model, fault.generation, fault.requests) == ("m", 1, (5,))
    assert fault.chain[0].startswith("AcceleratorError: CUDA error: device-side assert")
    assert side.text(5) == "w0"
    assert rig.page.read().requests == (5,)


@pytest.mark.parametrize(
    ("fault", "code"), [("exit111", 111), ("sigkill", -9), ("segv", -11), ("abort", -6)]
)
def test_a_scripted_death_is_a_real_one(
    rig: Rig, tmp_path: Path, fault: str, code: int
) -> None:
    side = rig.ready(tmp_path / "fake")
    side.ask(5, f"[[fake tokens=9 fault={fault} at=4]]")
    assert rig.wait_exit() == code
    assert len(side.ids(5)) <= 4


def test_a_hang_shows_as_an_armed_step_that_is_late(
    make_rig: Callable[..., Rig], tmp_path: Path
) -> None:
    import time

    rig = make_rig(limits={"decode_deadline_s": 0.05})
    side = rig.ready(tmp_path / "fake")
    side.ask(5, "[[fake tokens=9 fault=hang at=3]]")

    def late() -> bool:
        view = rig.page.read()
        return 0 < view.deadline_s < time.monotonic()

    wait_for(late)
    view = rig.page.read()
    assert (view.phase, view.requests) == (Phase.DECODE, (5,))


def test_a_models_fault_option_fires_at_its_step(rig: Rig, tmp_path: Path) -> None:
    side = rig.ready(tmp_path / "fake", fault={"kind": "sigkill", "at_step": 5})
    side.ask(1, "hello")
    assert rig.wait_exit() == -9
    assert len(side.ids(1)) <= 4


def test_a_failing_load_is_told_and_the_device_lives(rig: Rig, tmp_path: Path) -> None:
    side = rig.ready(tmp_path / "fake")
    folder = str(tmp_path / "fake")
    rig.order(Load("bad", folder, "auto", "none", 0, {"load_fail": True}))
    assert rig.wait_report(LoadFailed).error[0] == "load_failed"
    rig.order(Load("none", "/nowhere", "auto", "none", 0, {}))
    assert rig.wait_report(LoadFailed, count=2).model == "none"
    rig.order(Load("big", folder, "auto", "none", 0, {"memory_bytes": 1 << 60}))
    failed = rig.wait_report(LoadFailed, count=3)
    assert failed.error[0] == "insufficient_vram"
    assert side.answer(1, "next") == "echo: next"


def test_bytes_can_come_back_late(rig: Rig, tmp_path: Path) -> None:
    free_bytes = rig.wait_report(Hello).memory_free_bytes
    rig.ready(tmp_path / "fake", free_after_ms=50, memory_bytes=1000)
    rig.order(Unload("m"))
    assert rig.wait_report(Unloaded).memory_free_bytes == free_bytes - 1000

    def unload_again() -> bool:
        count = 1 + sum(isinstance(r, Unloaded) for r in rig.reports)
        rig.order(Unload("m"))
        return rig.wait_report(Unloaded, count=count).memory_free_bytes == free_bytes

    wait_for(unload_again)
