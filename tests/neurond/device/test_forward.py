from __future__ import annotations

import time
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field

import pytest

from ipc.errors import DeviceFault, ServiceError, error_for
from ipc.status import Phase, StatusReader, StatusWriter, create_page
from neurond.device.backend import Outcome, Work
from neurond.device.fake import FakeBackend
from neurond.device.forward import Forward
from neurond.device.sequence import Sequence
from neurond.device.settings import DeviceSettings
from neurond.device.verdict import DeviceDied
from tests.neurond.device.rig import make_submit
from tests.neurond.device.test_scheduler import resident


@dataclass
class Scripted(FakeBackend):
    """Raises as told: for the requests named, and in the probe."""

    errors: dict[int, Exception] = field(default_factory=dict)
    probe_error: Exception | None = None
    num_probes: int = 0

    def forward(self, works: Listing[Work]) -> list[Outcome]:
        for work in works:
            if work.sequence.id in self.errors:
                raise self.errors[work.sequence.id]
        return [work.sequence.id + 100 for work in works]

    def probe(self) -> None:
        self.num_probes += 1
        if self.probe_error is not None:
            raise self.probe_error


class Bench:
    def __init__(self, backend: Scripted) -> None:
        page_fd = create_page()
        self.page = StatusReader(page_fd)
        self.backend = backend
        writer = StatusWriter(page_fd)
        settings = DeviceSettings(decode_deadline_s=5.0, prefill_deadline_s=7.0)
        self._forward = Forward(backend, writer, settings, generation=3)

    def run(self, *ids: int, num_ids: int = 1, group: int = 0) -> list[Outcome]:
        return self._forward.run([self._work(n, num_ids, group) for n in ids])

    def died(self, *ids: int, group: int = 0) -> DeviceDied:
        with pytest.raises(DeviceDied) as caught:
            self.run(*ids, group=group)
        return caught.value

    def _work(self, number: int, num_ids: int, group: int) -> Work:
        trial = {"trial_group": group, "trial_until": 2 if group else 0}
        submit = make_submit(number, (1,) * num_ids, **trial)
        return Work(Sequence(1, submit, resident(), 0.0), num_ids)


def test_an_unclear_error_fails_the_row_to_blame_when_the_probe_passes() -> None:
    backend = Scripted(errors={2: RuntimeError("never seen before")})
    bench = Bench(backend)
    outcomes = bench.run(1, 2, 3)
    assert (outcomes[0], outcomes[2]) == (101, 103)
    assert isinstance(outcomes[1], ServiceError)
    assert outcomes[1].chain == ("RuntimeError: never seen before",)
    assert backend.num_probes == 2


def test_an_unclear_error_is_the_devices_when_the_probe_fails() -> None:
    backend = Scripted(
        errors={2: RuntimeError("never seen before")},
        probe_error=OSError("still broken"),
    )
    bench = Bench(backend)
    fault = bench.died(1, 2, 3).fault
    assert (fault.fault_class, fault.generation) == ("device", 3)
    assert fault.requests == (1, 2, 3)
    assert fault.type == "RuntimeError"
    assert fault.chain == ("RuntimeError: never seen before", "OSError: still broken")
    view = bench.page.read()
    assert (view.phase, view.requests) == (Phase.PROBE, (1, 2, 3))
    assert view.deadline_s - time.monotonic() <= 5.0


def test_s16_the_probe_after_a_step_on_trial_is_part_of_the_trial() -> None:
    backend = Scripted(errors={2: RuntimeError("?")}, probe_error=OSError("broken"))
    bench = Bench(backend)
    assert bench.died(2, group=4).fault.requests == (2,)
    view = bench.page.read()
    assert (view.phase, view.requests) == (Phase.TRIAL, (2,))
    assert view.deadline_s - view.since_s == pytest.approx(5.0)


def test_a_device_fault_needs_no_probe() -> None:
    backend = Scripted(errors={1: DeviceFault("the context is gone")})
    assert Bench(backend).died(1).fault.type == "DeviceFault"
    assert backend.num_probes == 0


def test_a_typed_error_of_a_request_needs_no_probe() -> None:
    error = error_for("nan_logits", "NaN")
    backend = Scripted(errors={1: error})
    assert Bench(backend).run(1, 2) == [error, 102]
    assert backend.num_probes == 0


@pytest.mark.parametrize(("num_ids", "series"), [(1, "step"), (4, "prefill")])
def test_a_step_is_counted_and_the_page_is_idle_again(
    num_ids: int, series: str
) -> None:
    bench = Bench(Scripted())
    bench.run(1, num_ids=num_ids)
    view = bench.page.read()
    assert (view.phase, view.steps, view.deadline_s) == (Phase.IDLE, 1, 0.0)
    assert sum(view.series[f"{series}_seconds"].counts) == 1


def test_a_step_is_armed_before_the_backend_is_entered() -> None:
    seen = []

    class Looking(Scripted):
        def forward(self, works: Listing[Work]) -> list[Outcome]:
            seen.append(bench.page.read())
            return super().forward(works)

    bench = Bench(Looking())
    bench.run(1, 2)
    bench.run(3, num_ids=4)
    now_s = time.monotonic()
    assert [view.phase for view in seen] == [Phase.DECODE, Phase.PREFILL]
    assert [view.requests for view in seen] == [(1, 2), (3,)]
    assert now_s < seen[0].deadline_s < now_s + 5.0
    assert now_s + 5.0 < seen[1].deadline_s < now_s + 7.0
