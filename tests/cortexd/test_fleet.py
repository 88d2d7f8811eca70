"""What clients meet while nodes come, go and change: a gateway and two nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.cortexd.gateway import Gateway
from tests.cortexd.node_stub import NodeStub, completion, model_fact, until


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[NodeStub, NodeStub]]:
    with NodeStub("m", "only-on-a") as a, NodeStub("m") as b:
        yield a, b


@pytest.fixture(scope="module")
def running(
    nodes: tuple[NodeStub, NodeStub], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    named = dict(zip("ab", nodes, strict=True))
    gateway = Gateway(folder, named, poll_interval_s=0.05, node_timeout_s=0.3)
    yield gateway.start()
    gateway.kill()


@pytest.fixture
def gateway(running: Gateway, nodes: tuple[NodeStub, NodeStub]) -> Gateway:
    for node in nodes:
        node.reset()
        if node.port and node._server is None:
            node.start()
    until(lambda: running.facts()["state"] == "ready")
    until(lambda: running.get("/health").json["status"] == "ready")
    return running


def standing(gateway: Gateway, name: str) -> dict[str, Any]:
    """The node, as operators see it."""
    nodes = gateway.facts()["nodes"]
    found: dict[str, Any] = next(node for node in nodes if node["name"] == name)
    return found


def is_down(gateway: Gateway, name: str) -> bool:
    return bool(standing(gateway, name)["state"] == "down")


def test_s25_one_missed_poll_changes_nothing_for_clients(
    gateway: Gateway, nodes: tuple[NodeStub, NodeStub]
) -> None:
    a, _ = nodes
    a.does.mute = True
    until(lambda: standing(gateway, "a")["misses"] == 1)

    answer = gateway.chat("only-on-a")

    a.does.mute = False
    assert answer.body == completion()
    until(lambda: standing(gateway, "a")["misses"] == 0)
    assert standing(gateway, "a")["state"] == "up"


def test_s25_a_node_that_is_down_means_503_for_its_models_never_404(
    gateway: Gateway, nodes: tuple[NodeStub, NodeStub]
) -> None:
    nodes[0].does.mute = True
    until(lambda: is_down(gateway, "a"))
    until(lambda: gateway.get("/health").json["nodes"]["up"] == 1)

    answer = gateway.chat("only-on-a")
    elsewhere = gateway.chat("m")
    unknown = gateway.chat("nobody has it")

    assert answer.status == 503
    assert answer.error["code"] == "no_healthy_node"
    assert int(answer.headers["retry-after"]) >= 1
    assert elsewhere.status == 200
    assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")
    assert gateway.get("/v1/models/only-on-a").json["loaded"] is False
    assert gateway.get("/health").status == 200


def test_a_node_that_comes_back_serves_again(
    gateway: Gateway, nodes: tuple[NodeStub, NodeStub]
) -> None:
    a, _ = nodes
    a.stop()
    until(lambda: is_down(gateway, "a"))

    a.start()

    until(lambda: gateway.chat("only-on-a").status == 200)
    kinds = [event["kind"] for event in gateway.ask("events")["events"]]
    assert kinds[-2:] == ["node.down", "node.up"]


def test_a_node_that_dies_unseen_is_no_reason_to_fail(
    gateway: Gateway, nodes: tuple[NodeStub, NodeStub]
) -> None:
    """Before the polls find out, requests find the other node by themselves."""
    nodes[0].stop()

    assert [gateway.chat("m").status for _ in range(5)] == [200] * 5


def test_s40_a_node_that_says_localhost_is_reached_where_it_was_configured(
    gateway: Gateway, nodes: tuple[NodeStub, NodeStub]
) -> None:
    """Port 1 of localhost, says the node; the configured address is what counts."""
    a, _ = nodes
    a.does.listen = {"http": "http://localhost:1", "metrics": "0.0.0.0:2"}
    until(lambda: standing(gateway, "a")["listen"])

    assert gateway.chat("only-on-a").status == 200

    shown = standing(gateway, "a")
    assert shown["endpoint"] == a.endpoint
    assert shown["listen"] == {"http": "http://127.0.0.1:1", "metrics": "127.0.0.1:2"}


def test_a_node_that_stops_gets_no_more_requests(
    gateway: Gateway, nodes: tuple[NodeStub, NodeStub]
) -> None:
    a, b = nodes
    a.does.state = "stopping"
    until(lambda: gateway.chat("only-on-a").status == 503)
    a.asked.clear()

    assert [gateway.chat("m").status for _ in range(4)] == [200] * 4
    refused = gateway.chat("only-on-a")

    assert a.asked == []
    assert len(b.asked) == 4
    assert (refused.status, refused.error["code"]) == (503, "shutting_down")


def test_a_model_that_is_loaded_or_unloaded_moves_the_requests(
    gateway: Gateway, nodes: tuple[NodeStub, NodeStub]
) -> None:
    _, b = nodes
    b.does.models = [model_fact("m"), model_fact("new")]
    b.does.residency = 2
    until(lambda: gateway.chat("new").status == 200)

    b.does.models = [model_fact("m"), model_fact("new", "unloaded")]
    b.does.residency = 3
    until(lambda: gateway.chat("new").status == 503)

    assert gateway.chat("new").error["code"] == "no_healthy_node"


@pytest.mark.parametrize("stream", [False, True])
def test_s14_a_node_that_hangs_holds_a_request_only_until_it_is_known_to(
    gateway: Gateway, nodes: tuple[NodeStub, NodeStub], stream: bool
) -> None:
    """Its connections stay open and nothing comes: polls find out, not timeouts."""
    a, _ = nodes
    a.does.chat, a.does.pause_s = "answer", 40.0
    begun_s = time.monotonic()

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(gateway.chat, "only-on-a", stream=stream)
        until(lambda: any(r.path.endswith("completions") for r in a.asked))
        a.does.mute = True
        answer = asked.result(20)

    assert time.monotonic() - begun_s < 15
    if stream:  # its head came before it hung
        assert b'"error"' in answer.body
        assert b"[DONE]" not in answer.body
    else:
        assert (answer.status, answer.error["code"]) == (503, "no_healthy_node")
        assert int(answer.headers["retry-after"]) >= 1
