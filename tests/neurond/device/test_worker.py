from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ipc.child import pass_settings
from ipc.link import create_link
from ipc.messages import (
    Accepted,
    Attach,
    Failed,
    Fault,
    Finished,
    Hello,
    Load,
    LoadFailed,
    LoadProgress,
    Stop,
    Unload,
    Unloaded,
)
from ipc.pair import PairFds, create_pair
from ipc.status import Phase, create_page
from neurond.device import fakemodel
from tests.neurond.device.rig import Rig, chat_ids, make_submit, wait_for


def error_code(end: object) -> str:
    assert isinstance(end, Failed), end
    return str(end.error[0])


def test_the_torch_free_modules_leave_torch_unloaded() -> None:
    script = (
        "import sys, neurond.device.worker, neurond.device.fake, "
        "neurond.device.fakemodel, neurond.device.preload, neurond.device.convert; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_hello_tells_what_the_device_is(rig: Rig) -> None:
    hello = rig.wait_report(Hello)
    assert hello.pid == rig.pid
    assert hello.generation == 1
    assert hello.backend == "fake"
    assert hello.memory_total_bytes == hello.memory_free_bytes > 0
    process = Path(f"/proc/{rig.pid}")
    assert process.joinpath("cmdline").read_bytes().startswith(b"neurond: device cpu-0")
    assert process.joinpath("oom_score_adj").read_text() == "500\n"


def test_the_exec_mode_runs_the_same_process() -> None:
    ours, theirs = create_link()
    link_fd, page_fd = theirs.fileno(), create_page()
    settings = {
        "name": "cpu-0",
        "kind": "fake",
        "generation": 3,
        "link_fd": link_fd,
        "page_fd": page_fd,
        "devices": {"memory_bytes": 1 << 20},
    }
    settings_fd = pass_settings(settings)
    fds = (settings_fd, link_fd, page_fd)
    command = [sys.executable, "-m", "neurond.device", "--settings-fd"]
    with subprocess.Popen([*command, str(settings_fd)], pass_fds=fds) as process:
        for fd in (settings_fd, page_fd):
            os.close(fd)
        theirs.close()
        hello, _ = wait_for(ours.receive)
        assert hello == Hello(process.pid, 3, "fake", 1 << 20, 1 << 20)
        ours.close()
        assert process.wait(timeout=10) == 0


def test_an_answer_comes_token_by_token_and_finishes(rig: Rig, tmp_path: Path) -> None:
    side = rig.ready(tmp_path / "fake")
    assert side.answer(7, "Grüße 🙂 日本") == "echo: Grüße 🙂 日本"
    accepted = side.inbox[0]
    finished = side.inbox[-1]
    assert accepted == Accepted(7, 0, 0)
    num_prompt = len(chat_ids("Grüße 🙂 日本"))
    num_emitted = len("echo: Grüße 🙂 日本".encode())
    assert finished == Finished(7, "stop", num_prompt, num_emitted, 0)


def test_one_step_is_one_record_for_all_rows_of_a_worker(
    rig: Rig, tmp_path: Path
) -> None:
    side = rig.ready(tmp_path / "fake", step_ms=1)
    for request in range(4):
        side.ask(request, "[[fake tokens=30]]")
    for request in range(4):
        side.wait_end(request)
    widest = max(len(m.rows) for m in side.inbox if hasattr(m, "rows"))
    assert widest == 4
    assert {side.text(request) for request in range(4)} == {
        "w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 "
    }


def test_max_tokens_ends_with_length(rig: Rig, tmp_path: Path) -> None:
    side = rig.ready(tmp_path / "fake")
    side.ask(1, "hello", max_tokens=4)
    end = side.wait_end(1)
    assert isinstance(end, Finished)
    assert (end.reason, end.num_emitted) == ("length", 4)
    assert side.text(1) == "echo"


def test_a_resumed_request_goes_on_behind_its_emitted_ids(
    rig: Rig, tmp_path: Path
) -> None:
    side = rig.ready(tmp_path / "fake")
    ids = chat_ids("hello")
    resumed = make_submit(1, (*ids, *b"echo: h"), num_prompt=len(ids), attempt=1)
    side.end.submit(resumed)
    end = side.wait_end(1)
    rows = [row for m in side.inbox if hasattr(m, "rows") for row in m.rows]
    assert rows[0].start == 7
    assert bytes(row.ids[0] for row in rows) == b"ello"
    assert isinstance(end, Finished)
    assert end.num_emitted == 11


def test_a_cancelled_request_gets_no_more_tokens(rig: Rig, tmp_path: Path) -> None:
    side = rig.ready(tmp_path / "fake", step_ms=2)
    side.ask(1, "[[fake tokens=4000]]")
    wait_for(lambda: len(side.ids(1)) > 3)
    side.cancel(1)
    assert side.answer(2, "next") == "echo: next"
    counted = len(side.ids(1))
    assert side.answer(3, "[[fake tokens=9]]") == "w0 w1 w2 "
    assert len(side.ids(1)) == counted
    assert side.ended(1) is None
    assert rig.page.read().counters["requests_cancelled_total"] == 1


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


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"ids": (300,), "num_prompt": 1}, "invalid_request_error"),
        ({"ids": (-1,), "num_prompt": 1}, "invalid_request_error"),
        ({"ids": (), "num_prompt": 0}, "invalid_request_error"),
        ({"ids": (1,) * 8192, "num_prompt": 8192}, "context_length_exceeded"),
        ({"max_tokens": 0}, "invalid_request_error"),
        ({"grammar": "root ::= x"}, "unsupported_parameter"),
        ({"slabs": (1,)}, "vision_unsupported"),
        ({"model": "other"}, "no_healthy_node"),
    ],
)
def test_what_the_front_end_should_have_refused_is_refused_here(
    rig: Rig, tmp_path: Path, more: dict[str, object], code: str
) -> None:
    side = rig.ready(tmp_path / "fake")
    side.ask(1, "x", **more)
    assert error_code(side.wait_end(1)) == code
    assert side.answer(2, "next") == "echo: next"


def test_the_queue_has_a_bound_and_says_where_a_request_stands(
    make_rig: Callable[..., Rig], tmp_path: Path
) -> None:
    rig = make_rig(max_running=1, max_queue=2)
    side = rig.ready(tmp_path / "fake", step_ms=1)
    for request in range(1, 5):
        side.ask(request, "[[fake tokens=40]]")
    assert error_code(side.wait_end(4)) == "queue_full"
    positions = [m.position for m in side.inbox if isinstance(m, Accepted)]
    assert positions == [0, 1, 2]
    assert all(isinstance(side.wait_end(n), Finished) for n in (1, 2, 3))


def test_a_request_past_its_deadline_ends(rig: Rig, tmp_path: Path) -> None:
    side = rig.ready(tmp_path / "fake", step_ms=5)
    side.ask(1, "[[fake tokens=4000]]", deadline_s=0.05)
    assert error_code(side.wait_end(1)) == "overloaded"


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


def test_a_load_shows_progress_and_streams_go_on(rig: Rig, tmp_path: Path) -> None:
    side = rig.ready(tmp_path / "fake", step_ms=1)
    side.ask(1, "[[fake tokens=4000]]")
    wait_for(lambda: side.ids(1))
    folder = fakemodel.build(tmp_path / "fake")
    before = len(side.ids(1))
    rig.load("second", folder, load_ms=300)
    assert len(side.ids(1)) > before + 5
    progress = [r for r in rig.reports if isinstance(r, LoadProgress)]
    second = [r for r in progress if r.model == "second"]
    assert [r.done for r in second] == sorted(r.done for r in second)
    assert second[-1].done == second[-1].total > 0
    assert {m.name for m in rig.page.read().models} == {"m", "second"}


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


def test_an_unload_ends_its_requests_and_gives_the_bytes_back(
    rig: Rig, tmp_path: Path
) -> None:
    free_bytes = rig.wait_report(Hello).memory_free_bytes
    side = rig.ready(tmp_path / "fake", step_ms=1)
    side.ask(1, "[[fake tokens=4000]]")
    wait_for(lambda: side.ids(1))
    rig.order(Unload("m"))
    assert rig.wait_report(Unloaded) == Unloaded("m", free_bytes)
    assert error_code(side.wait_end(1)) == "no_healthy_node"
    assert rig.page.read().models == []


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


def test_an_unload_cancels_a_load_in_progress(rig: Rig, tmp_path: Path) -> None:
    side = rig.ready(tmp_path / "fake")
    folder = str(tmp_path / "fake")
    rig.order(Load("slow", folder, "auto", "none", 0, {"load_ms": 60_000}))
    rig.wait_report(LoadProgress, count=2)
    rig.order(Unload("slow"))
    assert rig.wait_report(Unloaded).model == "slow"
    rig.load("next", Path(folder))  # loads go one by one, so the slow one is gone
    assert side.answer(1, "next") == "echo: next"


def test_stop_fails_what_is_left_and_exits_0(rig: Rig, tmp_path: Path) -> None:
    side = rig.ready(tmp_path / "fake", step_ms=1)
    side.ask(1, "[[fake tokens=4000]]")
    wait_for(lambda: side.ids(1))
    rig.order(Stop())
    assert rig.wait_exit() == 0
    assert error_code(side.wait_end(1)) == "shutting_down"


def test_the_device_ends_with_its_link(rig: Rig) -> None:
    rig.wait_report(Hello)
    rig.link.close()
    assert rig.wait_exit() == 0


def test_an_idle_device_beats_and_uses_no_processor(rig: Rig, tmp_path: Path) -> None:
    rig.ready(tmp_path / "fake")
    view = wait_for(lambda: (v := rig.page.read()).phase is Phase.IDLE and v)
    wait_for(lambda: rig.page.read().beat_s > view.beat_s)
    clock = Path(f"/proc/{rig.pid}/stat")
    spent = [int(x) for x in clock.read_text().split()[13:15]]
    beat_s = rig.page.read().beat_s
    wait_for(lambda: rig.page.read().beat_s > beat_s + 0.3)
    again = [int(x) for x in clock.read_text().split()[13:15]]
    assert sum(again) - sum(spent) <= 2
