"""How a node starts, what it starts with, and how it ends, in order or not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from neurond.modelid import EMBEDDED_ID, EMBEDDER_ID
from tests.harness import MODEL, ROOT, Node
from tests.httpclient import Http, text_of

BOOT_DEADLINE_S = 4.0
MISSING = "missing"


def test_a_killed_supervisor_takes_all_along_and_the_next_start_goes_on(
    tmp_path: Path,
) -> None:
    first = Node(tmp_path)
    try:
        first.start()
        first.wait_ready()
        device = first.facts()["devices"][0]
        first.kill(f"device {device['device']}")
        first.wait(lambda: first.device(device["device"])["deaths_total"] == 1, "death")
        first.wait_ready()
        lived = first.control("events", since=0)["events"]
        assert first.process is not None
        first.process.kill()
        first.process.wait()
        first.assert_nothing_left(within_s=2.0)
    finally:
        first.sweep()
    with Node(tmp_path) as second:
        now = second.control("events", since=0)["events"]
        assert now[: len(lived)] == lived
        kinds = [event["kind"] for event in lived]
        assert "device.died" in kinds
        assert kinds.count("device.ready") == 2
        assert now[len(lived)]["id"] > lived[-1]["id"]
        assert second.http.chat("on").text == "echo: on"
        end_with_an_open_stream(second)


def end_with_an_open_stream(node: Node) -> None:
    """SIGTERM: the stream is told to its end, the exit code is 0, nothing is left."""
    with (
        ThreadPoolExecutor(1) as pool,
        node.http.stream("[[fake tokens=150 step_ms=5]]") as stream,
    ):
        documents = stream.data()
        seen = [next(documents)]
        ending = pool.submit(node.terminate)
        seen += documents
        assert ending.result() == 0
    assert len(text_of(seen)) == 150
    assert seen[-1] == "[DONE]"
    assert seen[-2]["choices"][0]["finish_reason"] == "stop"


@pytest.fixture(scope="module")
def registry() -> Iterator[socket.socket]:
    """Where a library that wanted to fetch something would knock."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture(scope="module")
def young(
    tmp_path_factory: pytest.TempPathFactory, registry: socket.socket
) -> Iterator[Node]:
    """Just started by exec alone, with a model that takes its time and one that
    isn't there."""
    listed: list[dict[str, Any]] = [
        {"id": MODEL, "source": "fake", "options": {"load_ms": 3000}},
        {"id": MISSING, "source": "/nowhere/missing.gguf"},
    ]
    config: dict[str, dict[str, Any]] = {
        "devices": {"spawn": "exec"},
        "limits": {"boot_deadline_s": BOOT_DEADLINE_S},
    }
    node = Node(tmp_path_factory.mktemp("young"), models=listed, config=config)
    with pytest.MonkeyPatch.context() as patch:
        host, port = registry.getsockname()
        patch.setenv("HF_ENDPOINT", f"http://{host}:{port}")
        node.start()
    try:
        yield node
        node.stop()
    finally:
        node.sweep()


def test_s33_listeners_are_up_before_models_and_the_list_is_whole_throughout(
    young: Node,
) -> None:
    young.wait(lambda: young.facts()["state"] != "", "no control socket")
    assert young.model()["status"] == "loading"
    address = young.http.host, young.http.port
    socket.create_connection(address, 1).close()
    percents = [0.0]
    with ThreadPoolExecutor(1) as pool:
        lists = pool.submit(lists_until_loaded, young.http)
        while (fact := young.model())["status"] == "loading":
            percents.append(fact["percent"])
        assert fact["status"] == "loaded"
        seen = lists.result()
    assert len(set(percents)) > 5
    assert percents == sorted(percents)
    assert set(map(frozenset, seen)) == {
        frozenset((MODEL, MISSING, EMBEDDED_ID, EMBEDDER_ID))
    }


def lists_until_loaded(http: Http) -> list[set[str]]:
    """What /v1/models says from the first word of the supervisor on."""
    seen = []
    end_s = time.monotonic() + 20
    while time.monotonic() < end_s:
        reply = http.get("/v1/models")
        if reply.status != 503:
            seen.append({model["id"] for model in reply.json["data"]})
        if http.chat("hi").status == 200:
            return seen
    raise AssertionError("it is never loaded")


def test_s34_a_default_model_without_files_is_failed_and_nothing_is_fetched(
    young: Node, registry: socket.socket
) -> None:
    young.wait(lambda: young.model()["status"] == "loaded", "not loaded")
    fact = young.model(MISSING)
    assert fact["status"] == "failed"
    assert "no model folder and no .gguf file" in fact["reason"]
    assert fact["error"]
    young.wait(lambda: young.http.chat("hi").status == 200, "it doesn't answer")
    assert young.http.get("/health").status == 200
    with pytest.raises(BlockingIOError):
        registry.accept()


def test_a_device_that_never_says_hello_is_killed_and_tried_again(young: Node) -> None:
    young.wait(lambda: young.model()["status"] == "loaded", "not loaded")
    before = young.facts()["devices"][0]
    name = before["device"]
    young.kill(f"device {name}")
    young.wait(lambda: stop_newborn(young, name, before["pid"]), "no second life")
    stopped_s = time.monotonic()
    young.wait(lambda: young.device(name)["generation"] == 3, "it stays as it is")
    assert time.monotonic() - stopped_s > BOOT_DEADLINE_S - 1
    young.wait(lambda: young.device(name)["state"] == "ready", "no third life")
    events = young.control("events", since=0)["events"]
    reasons = [e["reason"] for e in events if e["kind"] == "device.died"]
    assert reasons == ["killed by SIGKILL", "boot took longer than its deadline"]
    young.wait(lambda: young.http.chat("hi").status == 200, "it doesn't answer")


def stop_newborn(node: Node, device: str, old_pid: int) -> bool:
    """SIGSTOP the device's new process before it can have said hello."""
    pid = node.device(device)["pid"]
    if pid in (None, old_pid):
        return False
    os.kill(pid, signal.SIGSTOP)
    assert node.device(device)["state"] == "starting", "too late: it runs"
    stopped = psutil.Process(pid)
    node.wait(lambda: stopped.status() == psutil.STATUS_STOPPED, "it goes on")
    return True


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[node]\nnmae = "x"\n', "neuron.toml:2: [node] nmae"),
        ('[devices]\ncount = "2"\n', "neuron.toml:2: [devices] count"),
        (None, "neuron.toml"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_line_and_exit_100(
    tmp_path: Path, text: str | None, complaint: str
) -> None:
    file = tmp_path / "neuron.toml"
    if text is not None:
        file.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "neurond", "--config", str(file)],
        cwd=ROOT,
        env={**os.environ, "CORTEX_RUN_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 100
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert complaint in done.stderr
