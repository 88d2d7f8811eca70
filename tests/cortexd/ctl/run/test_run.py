"""`cortex run` with both real daemons and a scripted device: start, chat, stop."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def _cortex_run(run_dir: Path, *words: str, **environ: str) -> Iterator[_Running]:
    fakemodel.build(run_dir / "models" / "tiny")
    given = {
        "NEURON_DEVICES__KIND": "fake",
        "NEURON_MODELS__FOLDERS": json.dumps([str(run_dir / "models")]),
        "NEURON_MODELS__DEFAULT": "tiny",
        "HOME": str(run_dir),
        **environ,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "cortexd.ctl.cortex", "run", *ANY_PORT, *words],
        env={**environment(run_dir), **given},
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
