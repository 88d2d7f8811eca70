"""`cortex run` with both real daemons and a scripted device: start, chat, stop."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from cortexd.ctl.exits import Exit
from neurond.device import fakemodel
from tests.cortexd.ctl.running import cortexctl, environment

ANY_PORT = [
    word
    for flag in ("--port", "--metrics-port", "--node-port", "--node-metrics-port")
    for word in (flag, "0")
]
START_S = 60.0


class _Running:
    """A `cortex run` in the background and the lines that it has written."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []

    def read_until(self, pattern: str) -> str:
        """The first line that matches; the test's own time limit bounds the wait."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if re.search(pattern, line):
                return line
        raise AssertionError("\n".join(self.lines))

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=START_S)
        self.lines += rest.splitlines()
        return self.process.returncode


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "cortexd.ctl.cortex", "run", *ANY_PORT, *words]


def _environment(run_dir: Path) -> dict[str, str]:
    """With one fake device and one model."""
    fakemodel.build(run_dir / "models" / "tiny")
    given = {
        "NEURON_DEVICES__KIND": "fake",
        "NEURON_MODELS__FOLDERS": json.dumps([str(run_dir / "models")]),
        "NEURON_MODELS__DEFAULT": "tiny",
        "HOME": str(run_dir),
    }
    return {**environment(run_dir), **given}


@contextmanager
def _cortex_run(run_dir: Path, *words: str, **environ: str) -> Iterator[_Running]:
    process = subprocess.Popen(
        _command(*words),
        env={**_environment(run_dir), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield _Running(process)
    finally:
        process.kill()
        process.communicate()


def _ask(curl_line: str) -> str:
    """What the printed curl line would print."""
    _, url, _, header, _, body = shlex.split(curl_line)
    name, _, value = header.partition(": ")
    request = urllib.request.Request(url, body.encode(), {name: value})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def test_it_starts_chats_as_printed_and_stops_cleanly(tmp_path: Path) -> None:
    with _cortex_run(tmp_path) as run:
        curl_line = run.read_until(r"^  curl ")
        answer = _ask(curl_line)
        status = cortexctl(tmp_path, "status", "--json")
        devices = json.loads(cortexctl(tmp_path, "devices", "--json").stdout)
        code = run.stop(signal.SIGINT)

    assert answer == "echo: What is the capital of France?"
    assert status.returncode == Exit.DONE, status.stdout
    assert json.loads(status.stdout)["gateway"]["state"] == "ready"
    assert [(d["device"], d["state"], d["node"]) for d in devices] == [
        ("fake-0", "ready", "local")
    ]
    assert any("ready after" in line for line in run.lines)
    assert code == 0
    assert run.lines[-1].endswith("cortex  stopped")
    assert not [pid for pid in _pids(devices) if Path(f"/proc/{pid}").exists()]


def test_a_configuration_of_ones_own_is_used_and_a_mistake_in_it_is_one_line(
    tmp_path: Path,
) -> None:
    config = tmp_path / "cortex.toml"
    config.write_text('[gateway]\nlisen = "127.0.0.1:0"\n')

    with _cortex_run(tmp_path, "--config", str(config)) as run:
        line = run.read_until("stopped before it was ready")
        code = run.process.wait(START_S)

    assert "cortexd stopped before it was ready, exit 100 (permanent): " in line
    assert f"{config}:2: [gateway] lisen" in line
    assert code == 1


def _pids(devices: list[dict[str, int]]) -> list[int]:
    return [device["pid"] for device in devices]


class _Terminal:
    """A terminal of its own, with `cortex run` in its foreground."""

    def __init__(self, run_dir: Path) -> None:
        self._leader, follower = pty.openpty()
        self.written = ""
        self.process = subprocess.Popen(
            _command(),
            env={**_environment(run_dir), "TERM": "xterm"},
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(follower)

    def type(self, keys: bytes) -> None:
        os.write(self._leader, keys)

    def read_until(self, pattern: str) -> None:
        """Raises EOFError where it ends before; the test's own limit bounds it."""
        while not re.search(pattern, self.written):
            self._read()

    def wait(self) -> int:
        """The exit code; reads on, so that it isn't held up by a full terminal."""
        with suppress(EOFError):
            while True:
                self._read()
        return self.process.wait(START_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._leader)

    def _read(self) -> None:
        try:
            read = os.read(self._leader, 1 << 16)
        except OSError:  # EIO: nobody has the terminal open any more
            read = b""
        if not read:
            raise EOFError(self.written)
        self.written += read.decode(errors="replace")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[_Terminal]:
    made = _Terminal(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("moment", ["starting", "curl "])
def test_one_ctrl_c_ends_it_and_leaves_nothing(
    terminal: _Terminal, tmp_path: Path, moment: str
) -> None:
    """The terminal interrupts the whole foreground group, not only `cortex run`."""
    terminal.read_until(moment)
    before = _names_of_its_daemons(tmp_path)
    terminal.type(b"\x03")

    assert terminal.wait() == 0, terminal.written
    assert before
    assert _names_of_its_daemons(tmp_path) == []
    assert "Traceback" not in terminal.written
    assert "stopped" in terminal.written


def _names_of_its_daemons(run_dir: Path) -> list[str]:
    """Of every process that was started for this folder."""
    mark = f"CORTEX_RUN_DIR={run_dir}".encode()
    found = []
    for process in psutil.process_iter():
        try:
            environ = Path(f"/proc/{process.pid}/environ").read_bytes()
            if mark in environ.split(b"\0"):
                found.append(" ".join(process.cmdline()))
        except (OSError, psutil.Error):
            continue  # it ended meanwhile
    return found
