from __future__ import annotations

import mmap
import os
from pathlib import Path

from ipc.messages import (
    Attach,
    Finished,
)
from ipc.pair import PairFds, create_pair
from tests.neurond.device.rig import Rig, error_code, wait_for


def test_s09_a_detached_workers_requests_are_dropped(rig: Rig, tmp_path: Path) -> None:
    side = rig.ready(tmp_path / "fake", step_ms=2)
    other = rig.attach(2)
    side.ask(1, "[[fake tokens=4000]]")
    other.ask(1, "[[fake tokens=60]]")
    wait_for(lambda: side.ids(1) and other.ids(1))
    rig.detach(side)
    assert isinstance(other.wait_end(1), Finished)
    view = wait_for(lambda: (v := rig.page.read()).gauges["running"] == 0 and v)
    assert view.models[0].running == 0
    assert other.answer(2, "still here") == "echo: still here"


def scribble(pair: PairFds) -> None:
    """Overwrite the ring that goes down, as a broken worker could."""
    with mmap.mmap(pair.down_ring, 0) as ring:
        ring[: len(ring)] = b"\xff" * len(ring)
    os.eventfd_write(pair.down_bell, 1)
    pair.close()


def test_a_worker_with_a_broken_ring_is_dropped_alone(rig: Rig, tmp_path: Path) -> None:
    healthy = rig.ready(tmp_path / "fake", step_ms=1)
    pair = create_pair(generation=9)
    copy = pair.duplicate()
    broken = rig.attach(9, pair=pair)
    healthy.ask(1, "[[fake tokens=100]]")
    broken.ask(1, "[[fake tokens=4000]]")
    wait_for(lambda: broken.ids(1))
    scribble(copy)
    wait_for(lambda: "its ring is broken" in rig.journal())
    assert isinstance(healthy.wait_end(1), Finished)
    assert rig.page.read().counters["requests_cancelled_total"] == 1


def test_a_pair_that_makes_no_sense_is_refused(rig: Rig, tmp_path: Path) -> None:
    healthy = rig.ready(tmp_path / "fake")
    pair = create_pair(generation=9)
    scribble(pair.duplicate())
    rig.order(Attach(9, 9, False), pair.numbers())
    pair.close()
    wait_for(lambda: "ring pair refused" in rig.journal())
    assert healthy.answer(1, "unharmed") == "echo: unharmed"


def test_attaching_and_detaching_leaks_nothing(rig: Rig, tmp_path: Path) -> None:
    side = rig.ready(tmp_path / "fake")

    def num_open() -> int:
        assert side.answer(len(side.inbox) + 1, "x") == "echo: x"
        return len(os.listdir(f"/proc/{rig.pid}/fd"))

    before = num_open()
    for number in range(2, 30):
        other = rig.attach(number)
        assert other.answer(1, "x") == "echo: x"
        rig.detach(other)
    rig.load("second", tmp_path / "fake")  # obeyed after the last detach
    assert num_open() == before


def test_a_full_ring_keeps_the_answer_until_it_is_read(
    rig: Rig, tmp_path: Path
) -> None:
    rig.ready(tmp_path / "fake")
    slow = rig.attach(2, capacity_bytes=4096)
    slow.ask(1, "[[fake tokens=2000]]")
    wait_for(lambda: rig.page.read().counters["requests_finished_total"] == 1)
    end = slow.wait_end(1)
    assert isinstance(end, Finished)
    assert len(slow.ids(1)) == 2000


def test_a_worker_that_never_reads_loses_its_requests_and_hears_of_it(
    rig: Rig, tmp_path: Path
) -> None:
    side = rig.ready(tmp_path / "fake")
    stuck = rig.attach(2, capacity_bytes=4096)
    stuck.ask(1, "[[fake tokens=9]]")
    stuck.ask(2, "[[fake tokens=8000]]", max_tokens=8000)
    wait_for(lambda: rig.page.read().counters["ring_full_total"] == 1)
    assert side.answer(1, "unharmed") == "echo: unharmed"
    assert error_code(stuck.wait_end(2)) == "overloaded"
    assert stuck.ended(1) is not None
