"""A real node for tests: started, asked over HTTP and control.sock, stopped, swept.

    with Node(tmp_path, devices=2) as node:
        answer = node.http.chat("hello")
        node.kill("device cpu-0")

A node runs on fake devices unless told otherwise, on ports of its own, with every
folder below `tmp_path`, so that tests run beside each other and beside a running stack.

Invariant: after `stop` no process of the node lives and /dev/shm is as it was before
the node started; else the test fails, and says what is left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from ipc.control import call
from tests.httpclient import Http
from tests.tomltext import to_toml

ROOT = Path(__file__).resolve().parent.parent
MODEL = "tiny"
READY_S = 30.0
STOP_S = 20.0
CONTROL_S = 10.0
POLL_S = 0.02

Config = Mapping[str, Any]


class Daemon:
    """A daemon of ours as a child process, with a config file and folders below
    `folder`. `Node` and a gateway's harness add what they know."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.name = name
        self.config = config
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / f"{name}.log"
        self._mark = f"{folder}/{name}"
        self._shm_before = set(os.listdir("/dev/shm"))

    @property
    def control_socket(self) -> Path:
        return self.folder / self.name / "run" / "control.sock"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Spawn it; returns at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{self.name}.toml"
        file.write_text(to_toml(self.config))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.name, "--config", str(file)],
                cwd=ROOT,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def control(
        self, op: str, args: Mapping[str, Any] | None = None, **named: Any
    ) -> dict[str, Any]:
        """One operation on control.sock. Raises the daemon's ServiceError."""
        arguments = {**(args or {}), **named}
        return call(self.control_socket, op, arguments, timeout_s=CONTROL_S)

    def facts(self) -> dict[str, Any]:
        return self.control("status")

    def processes(self) -> list[psutil.Process]:
        """Every process that this daemon started, however deep."""
        return [p for p in psutil.process_iter() if self._is_ours(p)]

    def find(self, title: str) -> psutil.Process:
        """The process titled "NAME: title"."""
        wanted = f"{self.name}: {title}"
        found = [p for p in self.processes() if title_of(p) == wanted]
        if not found:
            raise LookupError(f"no process is titled {wanted!r}")
        return found[0]

    def kill(self, title: str, sig: int = signal.SIGKILL) -> int:
        """Signal one of its processes; the pid."""
        process = self.find(title)
        process.send_signal(sig)
        return process.pid

    def wait(
        self, condition: Callable[[], bool], what: str, deadline_s: float = READY_S
    ) -> None:
        """Poll until `condition` holds; errors of a daemon that isn't up yet pass."""
        end_s = time.monotonic() + deadline_s
        while not _holds(condition):
            assert time.monotonic() < end_s, f"{what}\n{self.tail()}"
            assert self.is_running, f"the daemon ended: {what}\n{self.tail()}"
            time.sleep(POLL_S)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def terminate(self) -> int:
        """SIGTERM and the exit code; whatever is left fails the test."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not stop\n{self.tail()}") from None
        self.assert_nothing_left()
        return code

    def assert_nothing_left(self, within_s: float = 2.0) -> None:
        end_s = time.monotonic() + within_s
        while (left := self._left()) and time.monotonic() < end_s:
            time.sleep(POLL_S)
        assert not left, f"left behind: {left}\n{self.tail()}"

    def sweep(self) -> None:
        """End everything, at once and without judgement: for after a failed test."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass

    def tail(self, lines: int = 60) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _environment(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("NEURON_", "CORTEX_RUN", "PROMETHEUS_"))
        }
        return {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "CORTEX_RUN_DIR": str(self.folder),
            "CORTEX_TEST_DAEMON": self._mark,
            "SPT_NOENV": "1",  # else a process's title overwrites the mark
        }

    def _is_ours(self, process: psutil.Process) -> bool:
        mark = f"CORTEX_TEST_DAEMON={self._mark}".encode()
        try:
            environ = Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:
            return False  # it ended meanwhile
        return mark in environ.split(b"\0")

    def _left(self) -> list[str]:
        processes = [f"{p.pid} {title_of(p)}" for p in self.processes()]
        names = set(os.listdir("/dev/shm")) - self._shm_before
        return processes + [name for name in names if "cortex" in name]


class Node(Daemon):
    """A neurond on fake devices with the model "tiny" loaded.

    `config` adds to or replaces keys of the configuration, section by section, and
    replaces lists of tables;
    `options` are the fake model's (fakescript), `models` replaces the [[model]] list.
    """

    def __init__(
        self,
        folder: Path,
        *,
        devices: int = 1,
        workers: int = 1,
        options: Mapping[str, Any] | None = None,
        models: list[dict[str, Any]] | None = None,
        config: Config | None = None,
    ) -> None:
        model = {"id": MODEL, "source": "fake", "options": dict(options or {})}
        listed = [model] if models is None else models
        known: dict[str, Any] = {
            "node": {
                "name": "test-node",
                "listen": "127.0.0.1:0",
                "metrics_listen": "127.0.0.1:0",
                "workers": workers,
            },
            "devices": {"kind": "fake", "count": devices},
            "limits": {"drain_s": 5},
            "models": {"default": [entry["id"] for entry in listed]},
        }
        for section, values in (config or {}).items():
            is_section = isinstance(values, Mapping)
            known[section] = known.get(section, {}) | values if is_section else values
        super().__init__(folder, "neurond", {**known, "model": listed})
        self._http: Http | None = None

    def __enter__(self) -> Node:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.sweep()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if kind is None and self.is_running:
            self.stop()
        else:
            self.sweep()

    def wait_ready(self, deadline_s: float = READY_S) -> None:
        """Until every default model is loaded and the HTTP side says so too."""
        self.wait(self._is_ready, "the node is not ready", deadline_s)

    @property
    def http(self) -> Http:
        if self._http is None:
            self._http = Http(self.facts()["listen"]["http"], MODEL)
        return self._http

    def device(self, name: str) -> dict[str, Any]:
        """The device's fact."""
        facts = self.facts()["devices"]
        found: dict[str, Any] = next(d for d in facts if d["device"] == name)
        return found

    def model(self, name: str = MODEL) -> dict[str, Any]:
        facts = self.facts()["models"]
        found: dict[str, Any] = next(m for m in facts if m["id"] == name)
        return found

    def stop(self) -> None:
        """SIGTERM; it must end in time, with 0, and leave nothing."""
        try:
            code = self.terminate()
        finally:
            self.sweep()
        assert code == 0, f"exit {code}\n{self.tail()}"

    def _is_ready(self) -> bool:
        wanted = set(self.config["models"]["default"])
        facts = self.facts()
        loaded = {m["id"] for m in facts["models"] if m["status"] == "loaded"}
        if facts["state"] != "ready" or not wanted <= loaded:
            return False
        seen = self.http.get("/health", self._key)
        return seen.status == 200 and seen.json["residency"] == facts["residency"]

    @property
    def _key(self) -> dict[str, str]:
        token = self.config["node"].get("token", "")
        return {"authorization": f"Bearer {token}"} if token else {}


def title_of(process: psutil.Process) -> str:
    """What `ps` shows; "" when it has ended."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def _holds(condition: Callable[[], bool]) -> bool:
    from ipc.errors import ServiceError

    try:
        return condition()
    except (OSError, ServiceError, LookupError, StopIteration, psutil.Error):
        return False
