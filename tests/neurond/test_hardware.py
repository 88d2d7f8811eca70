"""Reports of drivers become orders: over devices that only keep what they are told."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ipc.errors import ClientError
from ipc.messages import Fault
from ipc.status import PageView
from neurond.deviceslot import DeviceSlot
from neurond.discovery import DeviceSpec
from neurond.hardware import Hardware
from neurond.sightings import WINDOW_S
from neurond.states import DeviceState
from neurond.xids import Sighting
from tests.neurond.slotkit import page

GIB = 1 << 30
DRAIN_S = 30.0


class Gpu:
    """A device as evidence sees it; keeps its orders."""

    def __init__(self, index: int) -> None:
        uuid = f"GPU-{index}"
        self.spec = DeviceSpec(f"gpu-{index}", "cuda", "H", uuid, 80 * GIB, index)
        self.name = self.spec.device
        self.state = DeviceState.READY
        self.generation = 1
        self.pid: int | None = 100 + index
        self.has_said_hello = True
        self.cure = ""
        self.orders: list[tuple[str, str]] = []
        self.running = 0

    def expects(self, reason: str, *, is_patient: bool) -> None:
        self.orders.append(("expects", "patient" if is_patient else "normal"))

    def respawn(self, reason: str) -> None:
        self.orders.append(("respawn", reason))

    def kill(self, reason: str) -> None:
        self.orders.append(("kill", reason))

    def take_out(self, reason: str, cure: str) -> None:
        self.orders.append(("take_out", cure))
        self.cure = cure
        self.state = DeviceState.FAILED

    def reset(self) -> None:
        self.orders.append(("reset", ""))
        self.state = DeviceState.BACKOFF

    def view(self) -> PageView:
        return page(lambda writer: writer.set("running", self.running))

    @property
    def verbs(self) -> list[str]:
        return [verb for verb, _ in self.orders]


class Host:
    """Two GPUs, their evidence, and what was told of them."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.silent_s = 0.0
        self.gpus = [Gpu(0), Gpu(1)]
        self.noted: list[tuple[str, dict[str, Any]]] = []
        self.hardware = Hardware(
            lambda: [slot(gpu) for gpu in self.gpus],
            note=lambda kind, **fields: self.noted.append((kind, fields)),
            silent_s=lambda: self.silent_s,
            drain_s=DRAIN_S,
            clock=lambda: self.now_s,
        )
        for gpu in self.gpus:
            self.hardware.born(slot(gpu))

    def hear(self, *xids: tuple[int, Sighting], **shows: dict[str, Any]) -> None:
        rows = {
            gpu.spec.uuid: shows.get(f"gpu_{gpu.spec.index}", {}) for gpu in self.gpus
        }
        seen = [(self.gpus[index].spec.uuid, sighting) for index, sighting in xids]
        self.hardware.hear(rows, seen)

    def facts(self, gpu: Gpu) -> dict[str, Any]:
        return self.hardware.facts(slot(gpu))

    def dies(self, gpu: Gpu) -> str:
        """Why nobody pays for it."""
        self.hardware.died(slot(gpu))
        return self.hardware.spares(slot(gpu))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.noted]


def slot(gpu: Gpu) -> DeviceSlot:
    return cast(DeviceSlot, gpu)


def last_words(code: int, *requests: int, chain: tuple[str, ...] = ()) -> Fault:
    return Fault("device", "AcceleratorError", code, chain, "m", 1, requests)


def test_s36_a_gpu_off_the_bus_is_taken_out_and_its_neighbour_is_not() -> None:
    host = Host()
    lost, other = host.gpus
    host.hear((0, Sighting(79)))
    assert lost.orders == [("take_out", "reboot the host")]
    assert other.orders == []
    assert "reboot" in host.facts(lost)["reset_wanted"]
    assert [line["xid"] for line in host.facts(lost)["xids"]] == [79]


def test_s36_also_when_only_its_reading_says_so() -> None:
    host = Host()
    for _ in range(3):
        host.hear(gpu_1={"error": "GPU is lost", "lost": True})
    assert host.gpus[1].orders == [("take_out", "reboot the host")]
    assert host.gpus[0].orders == []


def test_s37_uncontained_errors_take_out_and_charge_nobody() -> None:
    host = Host()
    gpu = host.gpus[0]
    host.hear((0, Sighting(95)))
    assert gpu.orders[0][0] == "take_out"
    assert "reset the GPU" in gpu.orders[0][1]
    assert host.dies(gpu).startswith("Xid 95")


def test_s37_contained_errors_cost_a_process_and_charge_nobody() -> None:
    host = Host()
    gpu = host.gpus[0]
    host.hear((0, Sighting(94)))
    assert gpu.verbs == ["kill"]
    assert host.dies(gpu).startswith("Xid 94")
    assert host.facts(gpu)["reset_wanted"] == ""


def test_an_applications_fault_may_charge_who_ran() -> None:
    host = Host()
    gpu = host.gpus[0]
    host.hear((0, Sighting(31)))
    assert gpu.verbs == ["kill"]
    assert host.dies(gpu) == ""


def test_a_channel_that_was_reset_ends_the_process_and_charges_nobody() -> None:
    host = Host()
    host.hear((0, Sighting(43)))
    assert host.gpus[0].verbs == ["kill"]
    assert host.dies(host.gpus[0]).startswith("Xid 43")


def test_what_comes_with_the_process_of_another_is_shown_only() -> None:
    host = Host()
    host.hear((0, Sighting(13, pid=7)), (1, Sighting(13, others=True)))
    assert [gpu.orders for gpu in host.gpus] == [[], []]
    assert host.kinds == ["device.xid", "device.xid"]


def test_the_recovery_action_takes_out_by_itself() -> None:
    host = Host()
    host.hear(gpu_0={"recovery_action": 0})
    assert host.gpus[0].orders == []
    for _ in range(2):
        host.hear(gpu_0={"recovery_action": 2}, gpu_1={"recovery_action": None})
    assert host.gpus[0].orders == [("take_out", "reboot the host")]
    assert host.gpus[1].orders == []


def test_rows_waiting_to_be_remapped_are_shown_and_it_serves_on() -> None:
    host = Host()
    host.hear(gpu_0={"remap": "pending"})
    assert host.gpus[0].orders == []
    assert "reset the GPU" in host.facts(host.gpus[0])["reset_wanted"]


def test_a_failed_remap_drains_for_a_while_and_then_takes_out() -> None:
    host = Host()
    gpu = host.gpus[0]
    gpu.running = 1
    host.hear(gpu_0={"remap": "failed"})
    host.hardware.tick()
    assert gpu.orders == []
    host.now_s += DRAIN_S
    host.hardware.tick()
    assert gpu.verbs == ["take_out"]


def test_a_retired_resource_takes_out_only_when_nothing_runs() -> None:
    host = Host()
    gpu = host.gpus[0]
    gpu.running = 1
    host.hear((0, Sighting(156)))
    host.now_s += 100 * DRAIN_S
    host.hardware.tick()
    assert gpu.orders == []
    gpu.running = 0
    host.hardware.tick()
    host.hardware.tick()
    assert gpu.verbs == ["take_out"]


def test_only_an_operator_brings_it_back_and_not_against_the_driver() -> None:
    host = Host()
    gpu = host.gpus[0]
    host.hear((0, Sighting(95, recovery=1)), gpu_0={"recovery_action": 1})
    with pytest.raises(ClientError, match="still asks"):
        host.hardware.reset_done("gpu-0")
    host.hear(gpu_0={"recovery_action": 0})
    assert gpu.verbs == ["take_out"]
    host.hardware.reset_done("gpu-0")
    assert gpu.verbs == ["take_out", "reset"]
    assert host.facts(gpu)["reset_wanted"] == ""
    with pytest.raises(ClientError, match="waits for no reset"):
        host.hardware.reset_done("gpu-0")
    with pytest.raises(ClientError, match="no device"):
        host.hardware.reset_done("gpu-9")


def test_a_clean_up_after_our_kill_is_not_even_told() -> None:
    host = Host()
    host.hardware.killed(slot(host.gpus[0]))
    host.hear((0, Sighting(45)))
    assert host.noted == []


@pytest.mark.parametrize("code", [35, 803, 804])
def test_s18_a_driver_that_does_not_fit_is_not_tried_again(code: int) -> None:
    host = Host()
    for gpu in host.gpus:
        gpu.has_said_hello = False
        assert not host.hardware.cuda_problem()
        host.hardware.faulted(slot(gpu), last_words(code))
        assert gpu.verbs == ["take_out"]
    assert host.hardware.cuda_problem().startswith(f"CUDA error {code}")
    host.hardware.reset_done("gpu-1")
    assert not host.hardware.cuda_problem()


@pytest.mark.parametrize("code", [46, 802])
def test_s39_what_is_not_ready_yet_is_shown_until_it_is(code: int) -> None:
    host = Host()
    gpu = host.gpus[0]
    gpu.has_said_hello = False
    chain = (f"RuntimeError: Unexpected error. Error {code}: not now",)
    host.hardware.faulted(slot(gpu), last_words(-1, chain=chain))
    assert gpu.orders == [("expects", "patient")]
    assert host.facts(gpu)["suspect"].startswith(f"CUDA error {code}")
    assert not host.hardware.cuda_problem()
    gpu.has_said_hello = True
    host.hardware.born(slot(gpu))
    assert host.facts(gpu)["suspect"] == ""


def test_faults_with_other_requests_make_the_device_a_suspect() -> None:
    host = Host()
    gpu = slot(host.gpus[0])
    host.hardware.faulted(gpu, last_words(700, 1, 2))
    assert host.noted == []
    host.hardware.faulted(gpu, last_words(214, 9))
    assert host.noted == []
    host.hardware.faulted(gpu, last_words(719, 3))
    assert host.kinds == ["device.suspect"]


def test_s38_silence_of_nvml_makes_suspects_and_orders_nothing() -> None:
    host = Host()
    host.silent_s = 11.0
    for _ in range(3):
        host.hardware.tick()
    assert host.kinds == ["nvml.failed"]
    assert {host.facts(gpu)["suspect"] for gpu in host.gpus} == {"NVML does not answer"}
    assert [gpu.orders for gpu in host.gpus] == [[], []]
    host.silent_s = 0.0
    host.hardware.tick()
    assert host.facts(host.gpus[0])["suspect"] == ""


def test_an_error_code_and_its_xid_are_one_fault_whichever_comes_first() -> None:
    early, late = Host(), Host()
    early.hear((0, Sighting(48, recovery=0)))
    early.now_s += WINDOW_S - 1
    assert early.dies(early.gpus[0]).startswith("Xid 48")
    gpu = late.gpus[0]
    assert late.dies(gpu) == ""
    gpu.generation, gpu.pid = 2, 200
    late.hardware.born(slot(gpu))
    late.now_s += WINDOW_S - 1
    late.hear((0, Sighting(48, pid=100, recovery=0)))
    assert gpu.orders == []
    late.hear((0, Sighting(95, pid=100)))
    assert gpu.verbs == ["take_out"]
