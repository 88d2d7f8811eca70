from __future__ import annotations

import pytest

from ipc.errors import DeviceFault
from ipc.messages import Fault, Hello, Inject
from ipc.status import PageView, Phase, StatusReader, StatusWriter, create_page
from neurond.device.fake import FakeBackend
from neurond.device.idleprobe import IdleProbe
from neurond.device.settings import DeviceSettings
from neurond.device.verdict import DeviceDied
from tests.neurond.device.rig import Rig

EVERY_S = 30.0


class Looking(FakeBackend):
    """Notes what the page showed during its probes."""

    def __init__(self, page: StatusReader) -> None:
        super().__init__()
        self.page = page
        self.seen: list[PageView] = []
        self.error: Exception | None = None

    def probe(self, *, idle: bool = False) -> None:
        assert idle
        self.seen.append(self.page.read())
        if self.error is not None:
            raise self.error


class Idle:
    def __init__(self, every_s: float = EVERY_S) -> None:
        page_fd = create_page()
        self.page = StatusReader(page_fd)
        self.backend = Looking(self.page)
        self.now_s = 0.0
        self.probe = IdleProbe(
            self.backend,
            StatusWriter(page_fd),
            DeviceSettings(probe_every_s=every_s, probe_deadline_s=5.0),
            generation=4,
            clock=lambda: self.now_s,
        )

    def at(self, now_s: float) -> int:
        """Probes so far."""
        self.now_s = now_s
        self.probe.turn()
        return len(self.backend.seen)


def test_an_idle_device_is_probed_every_so_often() -> None:
    idle = Idle()
    assert [idle.at(now_s) for now_s in (1, 29, 30, 31, 59, 60)] == [0, 0, 1, 1, 1, 2]


def test_a_step_puts_it_off() -> None:
    idle = Idle()
    idle.now_s = 20
    idle.probe.put_off()
    assert [idle.at(now_s) for now_s in (30, 49, 50)] == [0, 0, 1]


def test_it_is_armed_and_charges_nobody() -> None:
    idle = Idle()
    idle.at(30)
    seen = idle.backend.seen[0]
    assert (seen.phase, seen.requests) == (Phase.PROBE, ())
    assert seen.deadline_s - seen.since_s == pytest.approx(5.0)
    assert idle.page.read().phase is Phase.IDLE


def test_a_device_that_fails_it_is_gone() -> None:
    idle = Idle()
    idle.backend.error = DeviceFault("the probe computed 1 instead of 2")
    with pytest.raises(DeviceDied) as caught:
        idle.at(30)
    fault = caught.value.fault
    assert (fault.type, fault.generation, fault.requests) == ("DeviceFault", 4, ())


def test_it_can_be_switched_off() -> None:
    assert Idle(every_s=0).at(1e6) == 0


def test_a_device_that_breaks_while_idle_says_so() -> None:
    rig = Rig(injection=True, probe_every_s=0.01)
    try:
        rig.wait_report(Hello)
        rig.order(Inject("nvlink", at_step=0))
        assert rig.wait_exit() == 111
        assert rig.wait_report(Fault).code == 220
    finally:
        rig.close()
