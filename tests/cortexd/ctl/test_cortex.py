"""The `cortex` command: what is not run or serve is cortexctl's."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cortexd.ctl.exits import Exit
from tests.cortexd.ctl.running import DEADLINE_S, environment, stand_in


def _cortex(run_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cortexd.ctl.cortex", *words],
        env=environment(run_dir),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_cortex_status_is_cortexctl_status(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node"):
        run = _cortex(tmp_path, "status")

    assert run.returncode == Exit.DONE, run.stderr
    assert run.stdout.startswith("node ")


def test_cortex_serve_is_cortexd(tmp_path: Path) -> None:
    run = _cortex(tmp_path, "serve", "--version")

    assert (run.returncode, run.stdout[:8]) == (0, "cortexd ")


def test_help_speaks_of_cortex_and_of_its_two_verbs_more(tmp_path: Path) -> None:
    run = _cortex(tmp_path, "--help")

    assert run.stdout.startswith("usage: cortex ")
    assert "cortex run" in run.stdout
    assert "cortex serve" in run.stdout


def test_run_in_a_folder_that_is_in_use_is_one_line(tmp_path: Path) -> None:
    with stand_in(tmp_path, "node"):
        run = _cortex(tmp_path, "run")

    assert run.returncode == 1
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d cortex  neurond already runs in .*\n", run.stdout
    )


def test_run_with_a_taken_port_is_one_line_and_starts_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        free = ["--port", "0", "--metrics-port", "0", "--node-metrics-port", "0"]
        run = _cortex(tmp_path, "run", *free, "--node-port", port)

    assert run.returncode == 1
    assert len(run.stdout.splitlines()) == 1
    assert f"127.0.0.1:{port} (node) can't be listened on" in run.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["run", "--prot", "1"], ["run", "--port", "x"]])
def test_a_wrong_flag_of_run_is_exit_code_2(tmp_path: Path, words: list[str]) -> None:
    run = _cortex(tmp_path, *words)

    assert run.returncode == Exit.USAGE
    assert len(run.stderr.splitlines()) == 2


def test_run_explains_itself_with_examples_first(tmp_path: Path) -> None:
    run = _cortex(tmp_path, "run", "--help")

    assert run.returncode == 0
    assert "cortex run --port 8080" in run.stdout
