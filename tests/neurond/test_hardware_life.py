"""What drivers say, at real nodes on fake devices: simulated Xids take the way of those
that the NVML child reports, simulated start-up codes that of a real one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import ClientError, ServiceError
from neurond.device.standins import START_FILE
from tests.harness import MODEL, Node
from tests.httpclient import text_of
from tests.neurond.lives import (
    answers,
    device_of,
    events,
    last_event,
    until_some_text,
    wait_for_generation,
    wait_until_ready,
)

OTHER = "other"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Two devices; "tiny" may run on either, "other" begins on the one that is free."""
    listed = [{"id": name, "source": "fake"} for name in (MODEL, OTHER)]
    config = {"faults": {"injection": True}, "models": {"default": [MODEL]}}
    folder = tmp_path_factory.mktemp("node")
    with Node(folder, devices=2, models=listed, config=config) as node:
        free = {"fake-0", "fake-1"} - {device_of(node, MODEL)}
        node.control("load", model_id=OTHER, devices=sorted(free))
        yield node


def health(node: Node) -> str:
    return " ".join(line["text"] for line in node.facts()["health"])


@pytest.mark.parametrize(
    ("kind", "code"),
    [("device_assert", 710), ("illegal_access", 700), ("ecc", 214)],
)
def test_s01_a_fault_in_a_step_is_recorded_and_its_models_come_back(
    node: Node, kind: str, code: int
) -> None:
    since = last_event(node)
    name = device_of(node, MODEL)
    before = node.device(name)
    node.control("inject", device=name, kind=kind, at_step=1)
    assert node.http.chat("hi").text == "echo: hi"
    wait_for_generation(node, name, before["generation"] + 1)
    after = node.device(name)
    assert after["models"] == before["models"]
    assert after["deaths_total"] == before["deaths_total"] + 1
    assert after["last_fault"]["class"] == "device"
    told = next(e for e in events(node, since) if e["kind"] == "device.died")
    assert told.get("suspects", 0) == (0 if kind == "ecc" else 1)
    journal = node.log.read_text()
    assert "model marked poisoned" in journal
    assert str(code) in journal


def test_s36_a_gpu_off_the_bus_is_out_with_its_cure_and_the_rest_goes_on(
    node: Node,
) -> None:
    since = last_event(node)
    lost, alive = device_of(node, MODEL), device_of(node, OTHER)
    assert lost != alive
    pid = node.device(alive)["pid"]
    with node.http.stream("[[fake tokens=120 step_ms=5]]", model=OTHER) as stream:
        rest = until_some_text(stream)
        node.control("inject", device=lost, kind="xid:79")
        documents = list(rest)
    assert len(text_of(documents)) == 120
    node.wait(lambda: node.device(lost)["state"] == "failed", "it is not out")
    shown = node.device(lost)
    assert shown["cure"] == "reboot the host"
    assert [line["xid"] for line in shown["xids"]] == [79]
    assert "reboot the host" in health(node)
    assert node.device(alive)["pid"] == pid
    node.wait(lambda: answers(node, MODEL), "its model did not move")
    assert device_of(node, MODEL) == alive
    assert "device.failed" in [e["kind"] for e in events(node, since)]
    with pytest.raises(ClientError, match="reset-done"):
        node.control("respawn", device=lost)
    generation = shown["generation"]
    node.control("reset_done", device=lost)
    wait_until_ready(node, lost, generation + 1)
    assert node.device(lost)["cure"] == ""
    assert node.device(lost)["reset_wanted"] == ""


def test_s37_contained_errors_charge_nobody_and_the_stream_goes_on(node: Node) -> None:
    since = last_event(node)
    name = device_of(node, MODEL)
    generation = node.device(name)["generation"]
    with node.http.stream("[[fake tokens=80 step_ms=10]]") as stream:
        rest = until_some_text(stream)
        node.control("inject", device=name, kind="xid:94")
        documents = list(rest)
    assert len(text_of(documents)) == 80
    wait_for_generation(node, name, generation + 1)
    died = next(e for e in events(node, since) if e["kind"] == "device.died")
    assert died["reason"].startswith("Xid 94")
    assert "suspects" not in died


def test_s37_uncontained_errors_keep_the_device_out_until_a_reset(node: Node) -> None:
    since = last_event(node)
    name = device_of(node, MODEL)
    generation = node.device(name)["generation"]
    with node.http.stream("[[fake tokens=120 step_ms=10]]") as stream:
        rest = until_some_text(stream)
        node.control("inject", device=name, kind="xid:95,recovery=1")
        documents = list(rest)
    assert len(text_of(documents)) == 120  # its model moved, and the stream with it
    assert node.device(name)["state"] == "failed"
    assert "reset the GPU" in node.device(name)["cure"]
    died = next(e for e in events(node, since) if e["kind"] == "device.died")
    assert "suspects" not in died
    node.control("reset_done", device=name)
    wait_until_ready(node, name, generation + 1)


@pytest.mark.parametrize("kind", ["xid:45", "xid:31,pid=1", "xid:13,others", "xid:63"])
def test_an_echo_the_fault_of_another_and_news_cost_no_life(
    node: Node, kind: str
) -> None:
    name = device_of(node, MODEL)
    pid = node.device(name)["pid"]
    node.control("inject", device=name, kind=kind)
    assert answers(node, MODEL)
    assert node.device(name)["pid"] == pid


def test_what_is_no_xid_is_refused(node: Node) -> None:
    for kind in ("xid:", "xid:0", "xid:9999999", "xid:13,when=1"):
        with pytest.raises(ClientError):
            node.control("inject", device="fake-0", kind=kind)


def test_s18_s39_a_start_without_cuda_is_retried_or_refused_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "cuda"
    told.write_text("802")
    monkeypatch.setenv(START_FILE, str(told))
    node = Node(tmp_path, config={"faults": {"injection": True}})
    node.start()
    try:
        node.wait(lambda: node.device("fake-0")["deaths_total"] >= 2, "not retried")
        shown = node.device("fake-0")
        assert "fabric manager" in shown["suspect"]
        assert "fabric manager" in shown["reason"]
        assert shown["state"] in ("backoff", "starting")
        told.write_text("")
        node.wait_ready()
        assert node.device("fake-0")["suspect"] == ""
        assert answers(node)
        told.write_text("803")
        node.kill("device fake-0")
        node.wait(lambda: node.device("fake-0")["state"] == "failed", "not taken out")
        refused = refusal_of(node)
        assert refused.code == "cuda_unavailable"
        assert refused.row.status == 503
        assert "reboot the host" in refused.message
        assert "reboot the host" in health(node)
        assert node.is_running
        told.write_text("")
        node.control("reset_done", device="fake-0")
        node.wait(lambda: answers(node), "the model did not come back")
        node.stop()
    finally:
        node.sweep()


def refusal_of(node: Node) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        node.control("load", model_id="another", source="fake", wait=True)
    found: Any = caught.value
    assert isinstance(found, ServiceError)
    return found


def test_an_operator_says_at_the_command_line_that_a_reset_is_done(
    node: Node,
) -> None:
    name = device_of(node, MODEL)
    generation = node.device(name)["generation"]
    node.control("inject", device=name, kind="xid:119")
    node.wait(lambda: node.device(name)["state"] == "failed", "it is not out")
    assert cortexctl(node, "devices", "reset-done", "fake-9").returncode != 0
    assert cortexctl(node, "devices", "reset-done").returncode == 2
    assert cortexctl(node, "devices", "reset-done", name).returncode == 0
    wait_until_ready(node, name, generation + 1)


def cortexctl(node: Node, *words: str) -> subprocess.CompletedProcess[bytes]:
    socket = ["--socket", str(node.control_socket)]
    argv = [sys.executable, "-m", "cortexd.ctl", *words, *socket]
    return subprocess.run(argv, capture_output=True, check=False, timeout=20)
