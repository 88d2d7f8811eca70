from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipc.errors import ServiceError
from ipc.messages import Fault, Finished, Hello, Inject, Unload, Unloaded
from ipc.status import Phase
from neurond.device import fakemodel, standins
from neurond.device.backend import Row, Work
from neurond.device.fake import FakeBackend
from neurond.device.injection import KINDS, InjectingBackend
from neurond.device.sequence import Sequence
from tests.neurond.device import tiny
from tests.neurond.device.rig import Rig, WorkerSide, error_code, make_submit, wait_for
from tests.neurond.device.test_scheduler import resident

FOREVER = 1 << 30
CODES = {
    "device_assert": 710,
    "illegal_access": 700,
    "launch_failure": 719,
    "ecc": 214,
    "nvlink": 220,
}
SIGNALS = {
    "sigkill": signal.SIGKILL,
    "segv": signal.SIGSEGV,
    "abort": signal.SIGABRT,
}
ELSEWHERE = {"slow", "nan", "shape", "oom", "hang", "wrong_result"}


@pytest.fixture
def device() -> Iterator[Rig]:
    rig = Rig(injection=True)
    yield rig
    rig.close()


def order(rig: Rig, fault: str, **more: int) -> None:
    """As told by a supervisor; the device has taken it when this returns."""
    rig.order(Inject(fault, **more))
    wait_for(lambda: f"fault={fault}" in rig.journal(), "the order")


def ask_both(side: WorkerSide) -> None:
    for request in (1, 2):
        side.ask(request, "[[fake tokens=40 step_ms=1]]")


def test_every_kind_has_a_test_here() -> None:
    assert {*CODES, *SIGNALS, *ELSEWHERE} == set(KINDS)


@pytest.mark.parametrize("fault", CODES)
def test_a_poison_ends_the_process_with_the_step_that_met_it(
    device: Rig, tmp_path: Path, fault: str
) -> None:
    side = device.ready(tmp_path / "fake")
    order(device, fault, at_step=10)
    side.ask(7, "[[fake tokens=40]]")
    assert device.wait_exit() == 111
    said = device.wait_report(Fault)
    assert (said.fault_class, said.code, said.requests) == (
        "device",
        CODES[fault],
        (7,),
    )
    assert len(side.ids(7)) == 9
    assert device.page.read().requests == (7,)


@pytest.mark.parametrize("fault", SIGNALS)
def test_a_signal_ends_it_within_the_step(
    device: Rig, tmp_path: Path, fault: str
) -> None:
    side = device.ready(tmp_path / "fake")
    order(device, fault)
    side.ask(7, "hello")
    assert device.wait_exit() == -SIGNALS[fault]
    view = device.page.read()
    assert (view.phase, view.requests) == (Phase.PREFILL, (7,))


def test_a_hang_leaves_the_step_armed_for_ever(device: Rig, tmp_path: Path) -> None:
    side = device.ready(tmp_path / "fake")
    order(device, "hang", at_step=3)
    side.ask(7, "[[fake tokens=40]]")
    wait_for(lambda: device.page.read().phase is Phase.DECODE)
    wait_for(lambda: "S (sleeping)" in status(device.pid))
    view = device.page.read()
    assert (view.phase, view.requests, len(side.ids(7))) == (Phase.DECODE, (7,), 2)
    assert view.deadline_s > view.since_s
    assert device.process.poll() is None


def status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


def test_nan_is_one_requests(device: Rig, tmp_path: Path) -> None:
    side = device.ready(tmp_path / "fake")
    order(device, "nan", request=2, at_step=5)
    ask_both(side)
    assert error_code(side.wait_end(2)) == "nan_logits"
    assert isinstance(side.wait_end(1), Finished)


def test_s20_one_step_out_of_memory_costs_nobody_an_answer(
    device: Rig, tmp_path: Path
) -> None:
    side = device.ready(tmp_path / "fake")
    order(device, "oom")
    ask_both(side)
    assert [type(side.wait_end(request)) for request in (1, 2)] == [Finished] * 2
    assert device.page.read().counters["out_of_memory_total"] == 1


def test_s20_who_is_always_out_of_memory_fails_alone(
    device: Rig, tmp_path: Path
) -> None:
    side = device.ready(tmp_path / "fake")
    order(device, "oom", request=2, times=FOREVER)
    ask_both(side)
    assert error_code(side.wait_end(2)) == "insufficient_vram"
    assert isinstance(side.wait_end(1), Finished)


def test_a_wrong_shape_is_no_fault_of_the_device(device: Rig, tmp_path: Path) -> None:
    side = device.ready(tmp_path / "fake")
    order(device, "shape", request=1, times=FOREVER)
    side.ask(1, "hello")
    assert error_code(side.wait_end(1)) == "internal_error"
    assert side.answer(2, "hello") == "echo: hello"
    assert "model NOT marked poisoned" in device.journal()


def test_s19_a_wrong_result_shows_in_the_golden_result_of_one_load(
    device: Rig, tmp_path: Path
) -> None:
    device.wait_report(Hello)
    folder = fakemodel.build(tmp_path / "fake")

    def load() -> object:
        found = device.load("m", folder).info["golden"]
        device.order(Unload("m"))
        return found

    good = load()
    order(device, "wrong_result")
    assert [load() == good for _ in range(2)] == [False, True]


def test_a_poison_at_once_is_found_by_an_idle_device_and_charges_nobody(
    device: Rig, tmp_path: Path
) -> None:
    device.ready(tmp_path / "fake")
    order(device, "ecc", at_step=0)
    assert device.wait_exit() == 111
    fault = device.wait_report(Fault)
    assert (fault.code, fault.model, fault.requests) == (214, "", ())
    assert device.page.read().requests == ()


def test_the_end_comes_at_once_where_it_is_ordered_so(device: Rig) -> None:
    device.wait_report(Hello)
    device.order(Inject("sigkill", at_step=0))
    assert device.wait_exit() == -signal.SIGKILL


def test_a_device_with_torch_obeys_as_well(tmp_path: Path) -> None:
    rig = Rig("cpu", injection=True, threads=1)
    try:
        rig.wait_report(Hello)
        rig.load("m", tiny.build("llama", tmp_path))
        side = rig.attach(1)
        order(rig, "nan", request=2, at_step=3)
        order(rig, "illegal_access", request=3, at_step=1)
        for request in (1, 2):
            side.ask(request, "", ids=(5, 6, 7), max_tokens=12)
        assert error_code(side.wait_end(2)) == "nan_logits"
        assert isinstance(side.wait_end(1), Finished)
        side.ask(3, "", ids=(5, 6, 7), max_tokens=12)
        assert rig.wait_exit() == 111
        fault = rig.wait_report(Fault)
        assert (fault.code, fault.requests) == (700, (3,))
    finally:
        rig.close()


def test_without_the_setting_no_fault_can_be_ordered(tmp_path: Path) -> None:
    rig = Rig()
    try:
        side = rig.ready(tmp_path / "fake")
        rig.order(Inject("sigkill", at_step=0))
        rig.order(Unload("other"))
        rig.wait_report(Unloaded)
        assert "order=Inject" in rig.journal()
        assert side.answer(1, "hello") == "echo: hello"
    finally:
        rig.close()


def test_an_unknown_fault_is_said_so(device: Rig, tmp_path: Path) -> None:
    side = device.ready(tmp_path / "fake")
    device.order(Inject("earthquake"))
    device.order(Unload("other"))
    device.wait_report(Unloaded)
    assert "no such fault: earthquake" in device.journal()
    assert side.answer(1, "hello") == "echo: hello"


class Steps:
    """A backend in this process, and steps of the requests named."""

    def __init__(self, real: dict[str, Callable[[], object]] | None = None) -> None:
        self.slept: list[float] = []
        self.backend = InjectingBackend(
            FakeBackend(), real or {}, sleep=self.slept.append
        )

    def order(self, fault: str, **more: int) -> None:
        self.backend.inject(Inject(fault, **more))

    def step(self, *ids: int) -> list[object]:
        works = [self._work(number) for number in ids]
        found = self.backend.forward(works)
        return [o.code if isinstance(o, ServiceError) else type(o) for o in found]

    def _work(self, number: int) -> Work:
        model = resident()
        model.body = type("Body", (), {"options": {}, "num_steps": 0, "fault": ""})()
        sequence = Sequence(1, make_submit(number, (1,)), model, 0.0)
        return Work(sequence, 1)


def test_steps_are_counted_from_the_order_on() -> None:
    steps = Steps()
    steps.order("nan", at_step=3, times=2)
    assert [steps.step(1) for _ in range(5)] == [
        [Row],
        [Row],
        ["nan_logits"],
        ["nan_logits"],
        [Row],
    ]


def test_an_order_for_a_request_waits_for_it() -> None:
    steps = Steps()
    steps.order("nan", at_step=2, request=9)
    assert steps.step(9) == [Row]
    assert steps.step(1) == [Row]
    assert steps.step(1, 9) == [Row, "nan_logits"]
    assert steps.step(9) == [Row]


def test_an_order_can_be_taken_back() -> None:
    steps = Steps()
    steps.order("nan")
    steps.order("slow")
    steps.order("nan", times=0)
    assert steps.step(1) == [Row]
    assert steps.slept == [1.0]


def test_behind_a_poison_every_call_fails_alike() -> None:
    steps = Steps()
    steps.order("nan")
    steps.order("illegal_access")
    model = resident()
    backend = steps.backend
    calls: tuple[Callable[[], object], ...] = (
        lambda: steps.step(1),
        lambda: steps.step(1),
        backend.probe,
        backend.memory,
        lambda: list(backend.golden(model)),
        lambda: backend.unload(model),
        lambda: backend.clear_pages(model, [1]),
        lambda: backend.copy_page(model, 1, 2, 3),
    )
    for call in calls:
        with pytest.raises(standins.AcceleratorError, match="illegal memory") as caught:
            call()
        assert caught.value.error_code == 700


def test_a_backend_that_can_break_really_does() -> None:
    def really() -> None:
        raise OSError("for real")

    steps = Steps({"device_assert": really})
    steps.order("device_assert")
    with pytest.raises(OSError, match="for real"):
        steps.step(1)
    steps.backend.probe()
