"""cortexctl as a process, against daemons that answer on real control sockets."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortexd.ctl.exits import Exit
from tests.cortexd.ctl.running import (
    cortexctl,
    environment,
    importing,
    socket_path,
    stand_in,
    until,
)
from tests.cortexd.ctl.standin import MODEL
from tests.harness import ROOT

HEAVY = {"torch", "transformers", "numpy", "asyncio", "uvloop", "gunicorn", "falcon"}


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a node and a gateway that nobody changes."""
    run_dir = tmp_path_factory.mktemp("well")
    with stand_in(run_dir, "node"), stand_in(run_dir, "gateway"):
        yield run_dir


@pytest.mark.parametrize("verb", ["show", "loading", "events", "explain"])
def test_nothing_heavy_is_imported_for_a_verb(verb: str) -> None:
    loaded = importing(f"cortexd.ctl.__main__, cortexd.ctl.{verb}")

    assert not HEAVY & set(loaded)


def test_status_shows_node_and_gateway(well: Path) -> None:
    run = cortexctl(well, "status")

    assert run.returncode == Exit.DONE, run.stderr
    assert run.stdout.splitlines()[0].startswith("gateway  box-a  ● ready")
    assert run.stdout.splitlines()[-1] == "● no problems"
    assert run.stderr == ""


def test_status_takes_less_than_120_ms_of_a_core(well: Path) -> None:
    """Processor time, not the clock's: neighbours on the machine don't count."""
    environ = environment(well)
    measured = {k: v for k, v in environ.items() if not k.startswith("COVERAGE")}
    argv = [sys.executable, "-m", "cortexd.ctl", "status"]
    took_s = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(argv, env=measured, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        user_s = after.ru_utime - before.ru_utime
        took_s.append(user_s + after.ru_stime - before.ru_stime)

    assert min(took_s) < 0.12


def test_json_has_the_documents_of_the_daemons(well: Path) -> None:
    status = json.loads(cortexctl(well, "status", "--json").stdout)
    devices = json.loads(cortexctl(well, "devices", "--json").stdout)
    models = json.loads(cortexctl(well, "models", "--json").stdout)

    assert status["node"]["node"] == "box-a"
    assert status["gateway"]["gateway"] == "box-a"
    assert status["ready"] is True
    (device,) = devices
    assert {"device", "pid", "state", "generation", "models", "node"} <= set(device)
    assert [(model["id"], model["status"]) for model in models] == [(MODEL, "loaded")]


def test_models_and_devices_are_tables_of_their_own(well: Path) -> None:
    models = cortexctl(well, "models").stdout.splitlines()
    devices = cortexctl(well, "devices").stdout.splitlines()

    assert models[0].startswith("MODEL ")
    assert models[1].startswith(f"{MODEL}  ● loaded")
    assert devices[0].startswith("DEVICE ")
    assert devices[1].startswith("cpu-0 ")


def test_a_chosen_socket_is_the_only_one_asked(well: Path) -> None:
    path = socket_path(well, "gateway")

    chosen = cortexctl(well, "status", "--json", "--socket", str(path))

    document = json.loads(chosen.stdout)
    assert document["gateway"] is not None
    assert document["node"] is None


def test_a_degraded_node_is_exit_code_3(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node", "impaired"):
        run = cortexctl(tmp_path, "status")

    assert run.returncode == Exit.DEGRADED
    assert run.stdout.splitlines()[-1] == "✗ CX-CUDA: x; next: y"


@pytest.mark.parametrize("verb", ["status", "models", "devices", "events"])
def test_no_daemon_is_exit_code_7_with_a_next_command(
    tmp_path: Path, verb: str
) -> None:
    run = cortexctl(tmp_path, verb)

    assert run.returncode == Exit.UNREACHABLE
    assert run.stdout == ""
    assert "no daemon answers" in run.stderr
    assert "next: systemctl start neurond, or cortex run" in run.stderr


def test_a_socket_that_a_dead_daemon_left_is_no_daemon(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node") as path:
        pass
    assert path.exists()

    assert cortexctl(tmp_path, "status").returncode == Exit.UNREACHABLE


def test_a_daemon_that_gives_no_reply_is_named_with_its_pid(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node", "deaf"):
        began_s = time.monotonic()
        run = cortexctl(tmp_path, "status")
        took_s = time.monotonic() - began_s

    assert run.returncode == Exit.UNREACHABLE
    assert "neurond gave no reply in 2 s (pid " in run.stderr
    assert "next: systemctl restart neurond" in run.stderr
    assert took_s < 5


def test_who_is_not_authorised_gets_exit_code_5(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node", "refuse"):
        run = cortexctl(tmp_path, "status")

    assert run.returncode == Exit.NOT_ALLOWED
    assert run.stdout == ""


def test_errors_are_documents_too(tmp_path: Path) -> None:
    run = cortexctl(tmp_path, "status", "--json")

    assert json.loads(run.stdout)["error"]["exit"] == Exit.UNREACHABLE


def test_load_shows_its_stages_and_waits(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node", "unloaded"):
        run = cortexctl(tmp_path, "load", MODEL)

    assert run.returncode == Exit.DONE, run.stderr
    assert run.stdout.startswith(f"{MODEL} is loaded (")
    for words in ("convert", "weights", "80%", "3s left"):
        assert words in run.stderr


def test_load_on_a_terminal_draws_one_bar(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    with stand_in(tmp_path, "node", "unloaded"):
        subprocess.run(
            [sys.executable, "-m", "cortexd.ctl", "load", MODEL],
            env={**environment(tmp_path), "TERM": "xterm"},
            stdout=follower,
            stderr=follower,
            timeout=10,
            check=True,
        )
    os.close(follower)
    text = os.read(leader, 1 << 16).decode()
    os.close(leader)

    assert "█" in text
    assert text.count("\n") == 1
    assert text.rstrip().rpartition("\x1b[2K")[2].startswith(f"{MODEL} is loaded")


def test_loading_twice_is_done_at_once(well: Path) -> None:
    run = cortexctl(well, "load", MODEL)

    assert (run.returncode, run.stdout) == (Exit.DONE, f"{MODEL} is already loaded\n")


def test_load_without_waiting_returns_at_once(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node", "unloaded", "stuck"):
        run = cortexctl(tmp_path, "load", MODEL, "--no-wait", "--json")

    assert run.returncode == Exit.DONE
    assert json.loads(run.stdout)["status"] == "loading"


def test_a_load_that_takes_too_long_goes_on_and_is_exit_code_8(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node", "unloaded", "stuck"):
        run = cortexctl(tmp_path, "load", MODEL, "--timeout", "0.4")

    assert run.returncode == Exit.TIMED_OUT
    assert f"`cortexctl unload {MODEL}` cancels it" in run.stderr


def test_ctrl_c_ends_the_watching_and_says_so(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node", "unloaded", "stuck"):
        process = subprocess.Popen(
            [sys.executable, "-m", "cortexd.ctl", "load", MODEL],
            env=environment(tmp_path),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=10)

    assert "convert" in first + rest
    assert process.returncode == Exit.INTERRUPTED
    assert "goes on in the background" in rest


def test_a_failed_load_tells_the_models_own_error(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node", "unloaded", "broken"):
        run = cortexctl(tmp_path, "load", MODEL)

    assert run.returncode == Exit.FAILED
    assert "CX-LOAD-FAILED: no tensor lm_head.weight" in run.stderr
    assert "next: cortexctl models" in run.stderr


def test_an_unknown_model_is_exit_code_4_and_no_room_is_6(well: Path) -> None:
    unknown = cortexctl(well, "load", "nothing")
    no_room = cortexctl(well, "load", MODEL, "--context", "1m")

    assert unknown.returncode == Exit.NOT_FOUND
    assert no_room.returncode == Exit.REFUSED
    assert "12 GiB are free" in no_room.stderr


def test_unload_waits_until_the_model_is_gone(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node"):
        run = cortexctl(tmp_path, "unload", MODEL)
        again = cortexctl(tmp_path, "unload", MODEL)

    assert run.returncode == Exit.DONE, run.stderr
    assert again.stdout == f"{MODEL} is already unloaded\n"


def test_unload_of_a_busy_model_needs_a_yes(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node", "busy"):
        refused = cortexctl(tmp_path, "unload", MODEL, stdin="")
        done = cortexctl(tmp_path, "unload", MODEL, "--yes")

    assert refused.returncode == Exit.USAGE
    assert "serves 2 requests now; nothing was done" in refused.stderr
    assert done.returncode == Exit.DONE


@pytest.mark.parametrize(
    ("typed", "code"), [("y", Exit.DONE), ("n", Exit.FAILED), ("", Exit.FAILED)]
)
def test_at_a_terminal_unload_asks(tmp_path: Path, typed: str, code: Exit) -> None:
    leader, follower = pty.openpty()
    os.write(leader, f"{typed}\n".encode())
    with stand_in(tmp_path, "node", "busy"):
        run = subprocess.run(
            [sys.executable, "-m", "cortexd.ctl", "unload", MODEL],
            env=environment(tmp_path),
            stdin=follower,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    os.close(leader)
    os.close(follower)

    assert "would end with an error. Unload? [y/N]" in run.stderr
    assert run.returncode == code


def test_a_daemon_that_stops_during_a_load_is_told(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node", "unloaded", "stuck"):
        process = subprocess.Popen(
            [sys.executable, "-m", "cortexd.ctl", "load", MODEL],
            env=environment(tmp_path),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        process.stderr.readline()
    _, rest = process.communicate(timeout=10)

    assert process.returncode == Exit.UNREACHABLE
    assert "next: " in rest


def test_events_are_lines_or_objects(well: Path) -> None:
    lines = cortexctl(well, "events").stdout.splitlines()
    last = cortexctl(well, "events", "--limit", "1").stdout
    later = cortexctl(well, "events", "--since", "1", "--json").stdout

    assert lines[0].endswith("node.started")
    assert lines[1].endswith("device.ready  device=cpu-0 generation=1")
    assert last.splitlines() == lines[1:]
    assert json.loads(later)["kind"] == "device.ready"


def test_events_can_be_followed_and_come_once(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node"):
        run = cortexctl(tmp_path, "events", "-f", "--json", "--timeout", "0.3")

    ids = [json.loads(line)["id"] for line in run.stdout.splitlines()]
    assert ids[:3] == [1, 2, 3]
    assert ids == sorted(set(ids))


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node"):
        process = subprocess.Popen(
            [sys.executable, "-m", "cortexd.ctl", "events", "-f", "--timeout", "2"],
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.wait(10)
        assert process.stderr is not None
        words = process.stderr.read()

    assert (process.returncode, words) == (Exit.DONE, "")


def test_version_answers_without_a_daemon_and_with_one(
    tmp_path: Path, well: Path
) -> None:
    alone = cortexctl(tmp_path, "version")
    both = cortexctl(well, "version", "--json")

    assert alone.returncode == Exit.DONE
    assert alone.stdout.startswith("cortexctl")
    assert json.loads(both.stdout)["node cortex"] == "0.1.0"
    assert cortexctl(tmp_path, "--version").stdout.startswith("cortexctl 0.")


def test_help_has_the_exit_codes_and_each_verb(tmp_path: Path) -> None:
    codes = cortexctl(tmp_path, "help", "exit-codes")
    as_json = cortexctl(tmp_path, "help", "exit-codes", "--json")
    verb = cortexctl(tmp_path, "help", "load")

    assert "  7  no daemon answers" in codes.stdout
    assert json.loads(as_json.stdout)["7"] == "no daemon answers"
    assert verb.stdout.startswith("usage: cortexctl load")


def test_explain_works_offline(tmp_path: Path) -> None:
    one = cortexctl(tmp_path, "explain", "CX-LOAD-NOROOM")
    every = cortexctl(tmp_path, "explain", "--json")
    table = cortexctl(tmp_path, "explain")
    none = cortexctl(tmp_path, "explain", "CX-NO")

    assert "no device has room for the model" in one.stdout
    assert len(json.loads(every.stdout)) == len(table.stdout.splitlines()) - 1 > 30
    assert none.returncode == Exit.NOT_FOUND


def test_a_missing_socket_that_was_asked_for_is_named(tmp_path: Path) -> None:
    path = socket_path(tmp_path, "node")

    run = cortexctl(tmp_path, "status", "--socket", str(path))

    assert run.returncode == Exit.UNREACHABLE
    assert str(path) in run.stderr
    until(lambda: not path.exists(), "nothing was created")


def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "cortexd.ctl", "explain"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (
        1,
        "cortexctl: No space left on device\n",
    )
