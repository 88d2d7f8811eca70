from __future__ import annotations

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
    Finished,
    Hello,
    Load,
    LoadProgress,
    Stop,
    Unload,
    Unloaded,
)
from ipc.status import Phase, create_page
from neurond.device import fakemodel
from tests.neurond.device.rig import Rig, chat_ids, error_code, make_submit, wait_for


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


def test_who_takes_a_request_says_so_before_its_first_step(
    rig: Rig, tmp_path: Path
) -> None:
    """Else what its first step kills was never taken, isn't tried alone, and comes
    again (S16)."""
    side = rig.ready(tmp_path / "fake")
    side.ask(1, "[[fake tokens=4 fault=sigkill at=0]]")
    rig.wait_exit()
    assert side.poll() == [Accepted(1, 0, 0)]


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


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"ids": (300,), "num_prompt": 1}, "invalid_request_error"),
        ({"ids": (-1,), "num_prompt": 1}, "invalid_request_error"),
        ({"ids": (), "num_prompt": 0}, "invalid_request_error"),
        ({"ids": (1,) * 8192, "num_prompt": 8192}, "context_length_exceeded"),
        ({"max_tokens": 0}, "invalid_request_error"),
        ({"grammar": "root ::= x"}, "invalid_request_error"),
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
