"""A gateway whose polls are rare: what was loaded a moment ago is served (S25)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cortexd.gateway import Gateway
from tests.cortexd.node_stub import NodeStub, model_fact, until
from tests.harness import Daemon, Node
from tests.httpclient import Http

RARELY = {"poll_interval_s": 60}


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[NodeStub, Gateway]]:
    """The node tells no events, so nothing but a question brings news."""
    with NodeStub("m") as node:
        node.does.statuses = {"/events": 404}
        folder = tmp_path_factory.mktemp("gateway")
        gateway = Gateway(folder, {"a": node}, node_timeout_s=2, **RARELY)
        yield node, gateway.start()
        gateway.kill()


@pytest.fixture
def node(running: tuple[NodeStub, Gateway]) -> NodeStub:
    node, _ = running
    residency = node.does.residency
    node.reset()
    node.does.statuses = {"/events": 404}
    node.does.residency = residency + 1
    return node


@pytest.fixture
def gateway(running: tuple[NodeStub, Gateway], node: NodeStub) -> Gateway:
    _, gateway = running
    until(lambda: gateway.facts()["state"] == "ready")
    until(lambda: gateway.chat().status == 200)
    node.polled.clear()
    return gateway


def hold(node: NodeStub, model: str, status: str) -> None:
    node.does.models = [model_fact("m"), model_fact(model, status)]
    node.does.residency += 1


def test_a_model_that_the_snapshot_does_not_know_is_asked_for(
    node: NodeStub, gateway: Gateway
) -> None:
    hold(node, "new", "loaded")
    assert gateway.chat("new").status == 200


def test_a_model_that_was_loaded_since_the_last_poll_is_served(
    node: NodeStub, gateway: Gateway
) -> None:
    hold(node, "late", "loading")
    refused = gateway.chat("late")
    assert (refused.status, refused.error["code"]) == (503, "model_loading")

    hold(node, "late", "loaded")
    assert gateway.chat("late").status == 200


def test_what_the_snapshot_serves_asks_nobody(node: NodeStub, gateway: Gateway) -> None:
    assert gateway.chat().status == 200
    assert node.polled == []


def test_many_refusals_are_few_questions(node: NodeStub, gateway: Gateway) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: gateway.chat("none").status, range(64)))
    assert answers == [404] * 64
    health = [request for request in node.polled if request.path == "/health"]
    assert 1 <= len(health) <= 16


def test_what_a_real_node_loaded_is_served_from_its_answer_on(tmp_path: Path) -> None:
    with Node(tmp_path) as node:
        neuron = {"name": "one", "endpoint": node.http.url}
        listen = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0"}
        given = {**listen, "workers": 1, "drain_s": 1, **RARELY}
        daemon = Daemon(tmp_path, "cortexd", {"gateway": given, "neurons": [neuron]})
        daemon.start()
        try:
            daemon.wait(lambda: daemon.facts()["state"] == "ready", "it is ready")
            client = Http(daemon.facts()["listen"]["http"], "tiny")
            for _ in range(3):
                place = {"model_id": "tiny"}
                assert node.http.post("/models/unload", place).status == 200
                assert client.chat("x", max_tokens=1).status == 503
                assert node.http.post("/models/load", place).status == 200
                assert client.chat("x", max_tokens=1).status == 200
            daemon.terminate()
        finally:
            daemon.sweep()
