"""A real gateway under test: `python -m cortexd` in a folder of its own."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ipc.control import call
from tests.cortexd.node_stub import NodeStub, until

ROOT = Path(__file__).parents[2]
WAIT_S = 20.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


class Gateway:
    """`start` returns once it answers on its control socket."""

    def __init__(
        self, folder: Path, nodes: dict[str, NodeStub], **gateway: Any
    ) -> None:
        self.folder = folder
        self.errors = folder / "stderr"
        self.config = folder / "cortex.toml"
        self.config.write_text(toml(nodes, gateway))
        self.program = ["-m", "cortexd"]
        self.environ = {"CORTEX_RUN_DIR": str(folder), "CORTEX_LOG": "json"}

    def start(self) -> Gateway:
        self.launch()
        facts = until(self._answered, WAIT_S)
        host, _, port = facts["listen"]["http"].rpartition(":")
        self.address = (host, int(port))
        self.metrics_address = facts["listen"]["metrics"]
        return self

    def launch(self) -> None:
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, "--config", str(self.config)],
                cwd=ROOT,
                env=os.environ | self.environ,
                stderr=errors,
            )

    def _answered(self) -> Any:
        assert self.process.poll() is None, self.errors.read_text()
        try:
            return self.facts()
        except OSError:
            return None

    @property
    def control(self) -> Path:
        return self.folder / "cortexd" / "run" / "control.sock"

    def ask(self, op: str, **args: Any) -> dict[str, Any]:
        return call(self.control, op, args, timeout_s=5)

    def facts(self) -> dict[str, Any]:
        return self.ask("status")

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(WAIT_S)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(WAIT_S)

    def journal(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.errors.read_text().splitlines()]

    # ---- processes ------------------------------------------------------------------

    def children(self) -> dict[str, psutil.Process]:
        """By title; the same title is "title#2"."""
        found: dict[str, psutil.Process] = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                title = child.cmdline()[0].strip()
            except (psutil.Error, IndexError):
                continue
            found[title if title not in found else f"{title}#2"] = child
        return found

    def child(self, title: str) -> psutil.Process:
        found: psutil.Process = until(lambda: self.children().get(title), WAIT_S)
        return found

    # ---- HTTP -----------------------------------------------------------------------

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def request(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> Answer:
        connection = http.client.HTTPConnection(*self.address, timeout=WAIT_S)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body or None, named)
            answer = connection.getresponse()
            got = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, got, answer.read())
        finally:
            connection.close()

    def chat(self, model: str = "m", *, stream: bool = False, **headers: str) -> Answer:
        return self.request(
            "POST",
            "/v1/chat/completions",
            chat_body(model, stream=stream),
            content_type="application/json",
            **headers,
        )

    @contextmanager
    def streaming(self, model: str = "m") -> Iterator[socket.socket]:
        """A chat's connection, its request sent."""
        body = chat_body(model, stream=True)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(self.address, WAIT_S) as client:
            client.sendall(head.encode() + body)
            yield client


def chat_body(model: str, *, stream: bool) -> bytes:
    messages = [{"role": "user", "content": "hi"}]
    return json.dumps({"model": model, "messages": messages, "stream": stream}).encode()


def toml(nodes: dict[str, NodeStub], gateway: dict[str, Any]) -> str:
    settings = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "127.0.0.1:0",
        "workers": 1,
        "poll_interval_s": 0.1,
        "node_timeout_s": 0.5,
        "drain_s": 5,
        **gateway,
    }
    lines = ["[gateway]", *[f"{k} = {json.dumps(v)}" for k, v in settings.items()]]
    for name, node in nodes.items():
        lines += ["[[neurons]]", f'name = "{name}"', f'endpoint = "{node.endpoint}"']
    return "\n".join(lines) + "\n"


def read_until(client: socket.socket, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        more = client.recv(65536)
        assert more, data
        data += more
    return data
