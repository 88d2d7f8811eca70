"""The gateway's processes: who dies, who goes on, and what is left behind."""

from __future__ import annotations

import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ipc.control import follow
from tests.cortexd.gateway import Gateway, read_until
from tests.cortexd.node_stub import DONE, NodeStub, completion, until

FLEET = "cortexd: fleet"
FRONTEND = "cortexd: frontend"
METRICS = "cortexd: metrics"
WORKERS = ("cortexd: worker 1", "cortexd: worker 2")
ALL = {FLEET, FRONTEND, METRICS, *WORKERS}


@pytest.fixture(scope="module")
def node() -> Iterator[NodeStub]:
    with NodeStub("m") as node:
        yield node


@pytest.fixture(scope="module")
def running(
    node: NodeStub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    gateway = Gateway(folder, {"a": node}, workers=2).start()
    yield gateway
    gateway.kill()


@pytest.fixture
def gateway(running: Gateway, node: NodeStub) -> Gateway:
    node.reset()
    until(lambda: running.children().keys() == ALL)
    until(lambda: running.facts()["state"] == "ready")
    until(lambda: all(running.get("/v1/models/m").status == 200 for _ in range(16)))
    return running


def gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_every_process_says_what_it_is(gateway: Gateway) -> None:
    assert gateway.children().keys() == ALL
    title = psutil.Process(gateway.process.pid).cmdline()[0]
    assert title == "cortexd: supervisor"


def test_a_worker_that_is_killed_is_replaced(gateway: Gateway) -> None:
    for title in WORKERS:
        old = gateway.child(title)
        old.kill()
        until(lambda old=old: gone(old))
        until(lambda t=title, old=old: gateway.child(t).pid != old.pid)

    assert gateway.chat().body == completion()


def test_workers_serve_from_their_snapshot_while_fleet_is_away(
    gateway: Gateway, node: NodeStub
) -> None:
    old = gateway.child(FLEET)
    node.does.mute = True  # the new fleet can't see the node at once
    old.kill()
    until(lambda: gateway.children().get(FLEET, old).pid != old.pid)

    for _ in range(10):
        assert gateway.chat().body == completion()

    node.does.mute = False
    until(lambda: gateway.facts()["state"] == "ready")
    assert gateway.chat().status == 200
    assert "fleet.died" in kinds(gateway)


def test_a_stream_goes_on_while_fleet_is_replaced(
    gateway: Gateway, node: NodeStub
) -> None:
    node.does.num_frames = 40
    node.does.pause_s = 0.02
    old = gateway.child(FLEET)

    with gateway.streaming() as client:
        begun = read_until(client, b"w2 ")
        old.kill()
        until(lambda: gateway.children().get(FLEET, old).pid != old.pid)
        assert DONE in begun + read_until(client, DONE)


@pytest.mark.parametrize("title", [FRONTEND, METRICS])
def test_another_child_that_is_killed_is_replaced(gateway: Gateway, title: str) -> None:
    old = gateway.child(title)
    fleet = gateway.child(FLEET)

    old.kill()

    until(lambda: gateway.children().get(title, old).pid != old.pid)
    until(lambda: gateway.children().keys() == ALL)
    assert gateway.chat().status == 200
    assert gateway.child(FLEET).pid == fleet.pid


def kinds(gateway: Gateway) -> list[str]:
    return [event["kind"] for event in gateway.ask("events")["events"]]


# ---- what operators ask -------------------------------------------------------------


def test_operators_see_the_fleet(gateway: Gateway) -> None:
    facts = gateway.facts()

    assert facts["schema"] == 1
    assert facts["gateway"] == socket.gethostname()
    assert facts["health"] == []
    (a,) = facts["nodes"]
    assert (a["name"], a["state"], a["misses"]) == ("a", "up", 0)
    assert gateway.ask("models") == {"models": facts["models"]}
    assert facts["models"][0]["locations"][0]["status"] == "loaded"
    (device,) = gateway.ask("devices")["devices"]
    assert (device["node"], device["device"]) == ("a", "cpu-0")
    assert gateway.ask("version")["gateway"] == facts["gateway"]


def test_settings_are_shown_without_secrets(gateway: Gateway) -> None:
    settings = gateway.ask("settings")

    assert settings["gateway"]["workers"] == 2
    assert settings["neurons"][0]["name"] == "a"
    assert settings["catalogue"] == {"models": []}


def test_a_change_of_the_fleet_is_pushed_to_operators(
    gateway: Gateway, node: NodeStub
) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []
    topics = ("state", "events")

    def listen() -> None:
        for event in follow(gateway.control, topics, timeout_s=10):
            heard.append(event)
            if event[1].get("kind") == "node.up":
                return

    thread = threading.Thread(target=listen)
    thread.start()
    until(lambda: heard)
    node.does.mute = True
    until(lambda: any(data.get("kind") == "node.down" for _, data in heard))
    node.does.mute = False
    thread.join(10)

    states = [data["state"] for topic, data in heard if topic == "state"]
    assert states[0] == "ready"
    assert "impaired" in states


def test_sighup_is_not_the_end(gateway: Gateway) -> None:
    gateway.process.send_signal(signal.SIGHUP)

    until(lambda: "gateway.reload" in [x.get("event") for x in gateway.journal()])
    assert gateway.chat().status == 200


# ---- the end ------------------------------------------------------------------------


@pytest.fixture
def brief(node: NodeStub, tmp_path: Path) -> Iterator[Gateway]:
    """A gateway of the test's own."""
    node.reset()
    gateway = Gateway(tmp_path, {"a": node}, drain_s=3).start()
    until(lambda: gateway.facts()["state"] == "ready")
    until(lambda: len(gateway.children()) == 4)
    yield gateway
    gateway.kill()


def test_sigterm_ends_all_and_leaves_nothing(brief: Gateway) -> None:
    children = list(brief.children().values())
    brief.child(FLEET).suspend()  # it can't hear SIGTERM

    assert brief.stop() == 0

    assert all(gone(child) for child in children)
    run = brief.folder / "cortexd" / "run"
    assert [path for path in run.iterdir() if path.is_socket()] == []
    assert kinds_on_disk(brief)[-1] == "gateway.stopping"
    with pytest.raises(ConnectionRefusedError):
        brief.get("/health")


def kinds_on_disk(gateway: Gateway) -> list[str]:
    text = (gateway.folder / "cortexd" / "state" / "events.jsonl").read_text()
    return [line.split('"kind": "')[1].split('"')[0] for line in text.splitlines()]


def test_s32_a_stream_may_end_during_the_drain(brief: Gateway, node: NodeStub) -> None:
    node.does.num_frames = 30
    node.does.pause_s = 0.02

    with brief.streaming() as client:
        begun = read_until(client, b"w2 ")
        brief.process.terminate()
        assert DONE in begun + read_until(client, DONE)

    assert brief.process.wait(10) == 0


def test_s32_a_stream_that_outlives_the_drain_is_told_so(
    node: NodeStub, tmp_path: Path
) -> None:
    node.reset()
    node.does.num_frames = 10_000
    node.does.pause_s = 0.05
    gateway = Gateway(tmp_path, {"a": node}, drain_s=0).start()
    until(lambda: gateway.get("/health").status == 200)

    with gateway.streaming() as client:
        read_until(client, b"w2 ")
        gateway.process.terminate()
        ending = read_until(client, b'data: {"error":')

    assert b"[DONE]" not in ending
    assert gateway.process.wait(10) == 0


def test_when_the_supervisor_is_killed_all_children_go(brief: Gateway) -> None:
    children = list(brief.children().values())

    brief.process.kill()

    until(lambda: all(gone(child) for child in children), 2.0)
    brief.process.wait(10)
    brief.start()  # at once

    assert until(lambda: brief.get("/health").status == 200)
    assert brief.ask("stop") == {}  # as good as a signal
    assert brief.process.wait(10) == 0


def test_a_second_gateway_in_the_same_place_gives_up(gateway: Gateway) -> None:
    second = Gateway(gateway.folder, {})
    second.errors = gateway.folder / "second"

    second.launch()

    assert second.process.wait(10) == 111
    assert "control.sock: somebody listens already" in second.errors.read_text()
    assert gateway.get("/health").status == 200


def test_a_port_in_use_is_one_line_and_worth_another_try(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        gateway = Gateway(tmp_path, {}, listen=address)
        gateway.launch()
        assert gateway.process.wait(10) == 111

    assert not gateway.control.exists()
    assert gateway.errors.read_text() == f"cortexd: {address}: Address already in use\n"


def test_requests_that_died_with_the_arbiter_are_not_in_flight(
    gateway: Gateway, node: NodeStub
) -> None:
    node.does.num_frames = 10_000
    node.does.pause_s = 0.05
    with gateway.streaming() as client:
        read_until(client, b"w2 ")
        assert in_flight(gateway) == 1
        gateway.children()[FRONTEND].kill()
        until(lambda: gateway.children().keys() == ALL)

    until(lambda: in_flight(gateway) == 0)


def in_flight(gateway: Gateway) -> float:
    address = f"http://{gateway.metrics_address}/metrics"
    with urllib.request.urlopen(address, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    name = "cortexd_requests_in_flight "
    return sum(float(line.removeprefix(name)) for line in lines if name in line[:27])


def with_metrics(folder: Path, command: str) -> Gateway:
    gateway = Gateway(folder, {})
    gateway.program = ["-m", "tests.cortexd.broken_children", command]
    return gateway


def test_a_child_that_wants_another_configuration_ends_it_all(tmp_path: Path) -> None:
    gateway = with_metrics(tmp_path, "exit 100")
    gateway.launch()

    assert gateway.process.wait(10) == 100

    assert not gateway.control.exists()
    assert "exit 100 (permanent)" in gateway.errors.read_text()


def test_a_child_that_dies_again_and_again_is_no_reason_to_stop_serving(
    tmp_path: Path,
) -> None:
    gateway = with_metrics(tmp_path, "exit 1").start()
    try:
        until(lambda: kinds(gateway).count("metrics.died") >= 3)
        until(lambda: gateway.facts()["health"])
        assert gateway.get("/version").status == 200
    finally:
        assert gateway.stop() == 0

    (first, *_) = [x for x in gateway.journal() if x.get("event") == "metrics.died"]
    assert first["message"] == "metrics ended: exit 1 (crash)"


def test_without_nodes_it_runs_and_says_what_to_do(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, {}).start()
    try:
        facts = until(lambda: (f := gateway.facts())["health"] and f)
        health = gateway.get("/health")
    finally:
        gateway.stop()

    assert facts["state"] == "impaired"
    assert "add [[neurons]] to cortex.toml" in facts["health"][0]["text"]
    assert health.status == 503


def test_nobody_else_may_give_orders(gateway: Gateway) -> None:
    mode = os.stat(gateway.control).st_mode & 0o777

    assert mode == 0o660
    assert os.stat(gateway.control.parent).st_mode & 0o077 == 0
