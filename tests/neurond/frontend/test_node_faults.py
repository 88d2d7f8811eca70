"""Deaths, loads and stops of a real node, as its clients see them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import MODEL, Node
from tests.httpclient import text_of

OTHER = "other"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Two devices with a model each; every test leaves it ready."""
    listed = [{"id": name, "source": "fake", "options": {}} for name in (MODEL, OTHER)]
    folder = tmp_path_factory.mktemp("node")
    with Node(folder, devices=2, models=listed) as node:
        yield node


def device_of(node: Node, model: str) -> str:
    name: str = node.model(model)["devices"][0]
    return name


def until_text(stream: Any, chars: int) -> str:
    """Read until so much text is here."""
    seen = ""
    for document in stream.data():
        seen += text_of([document])
        if len(seen) >= chars:
            return seen
    raise AssertionError(f"the stream ended after {seen!r}")


@pytest.mark.parametrize("fault", ["exit111", "sigkill", "device_assert", "segv"])
def test_s01_a_device_that_dies_costs_its_requests_time_and_nothing_else(
    node: Node, fault: str
) -> None:
    device = device_of(node, MODEL)
    before = node.device(device)["generation"]
    killer = f"[[fake tokens=60 step_ms=2 fault={fault} at=30 attempts=1]]"
    with node.http.stream(killer) as stream:
        documents = list(stream.data())
    assert documents[-1] == "[DONE]"
    assert text_of(documents) == node.http.chat("[[fake tokens=60]]").text
    after = node.device(device)
    assert (after["state"], after["generation"]) == ("ready", before + 1)
    assert node.http.chat(killer).text == text_of(documents)
    node.wait_ready()


def test_a_device_dies_alone(node: Node) -> None:
    mine = device_of(node, MODEL)
    theirs = {"fake-0": "fake-1", "fake-1": "fake-0"}[mine]
    assert node.http.post("/models/unload", {"model_id": OTHER}).status == 200
    place = {"model_id": OTHER, "devices": [theirs]}
    assert node.http.post("/models/load", place).status == 200
    with node.http.stream("[[fake tokens=60 step_ms=10]]", model=OTHER) as neighbour:
        until_text(neighbour, 5)
        node.kill(f"device {mine}")
        assert list(neighbour.data())[-1] == "[DONE]"
    node.wait_ready()


def test_a_worker_that_dies_is_replaced_and_its_requests_are_dropped(
    node: Node,
) -> None:
    stream = node.http.stream("[[fake tokens=4000 step_ms=10]]")
    until_text(stream, 3)
    old = node.kill("worker 1")
    node.wait(lambda: node.find("worker 1").pid != old, "a new worker")
    node.wait_ready()
    assert node.http.chat("x").text == "echo: x"
    device = device_of(node, MODEL)
    node.wait(lambda: node.device(device)["running"] == 0, "dropped", 5)
    stream.close()


def test_models_load_and_unload_over_http_and_events_tell_of_it(node: Node) -> None:
    http = node.http
    with http.follow("/events") as events:
        frames = events.frames()
        assert next(frames) == ": events"
        done = http.post("/models/unload", {"model_id": MODEL})
        assert (done.status, done.json["status"]) == (200, "unloaded")
        assert http.chat("x").error["code"] == "no_healthy_node"
        stale = {"if-match": '"old.1"'}
        assert http.post("/models/load", {"model_id": MODEL}, stale).status == 412
        assert http.post("/models/load?wait=0", {"model_id": MODEL}).status == 202
        again = http.post("/models/load", {"model_id": MODEL})
        assert (again.status, again.json["status"]) == (200, "loaded")
        assert again.headers["etag"] == http.get("/models").headers["etag"]
        assert http.chat("x").status == 200
        wanted = ["model.unloading", "model.unloaded", "model.loading", "model.loaded"]
        assert [kind_of(next(frames)) for _ in wanted] == wanted


def kind_of(frame: str) -> str:
    return frame.splitlines()[1].removeprefix("event: ")


def test_s14_s33_while_a_model_loads_or_comes_back_it_is_listed_and_503(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path, options={"load_ms": 400})
    try:
        node.start()
        node.wait(lambda: node.http.get("/v1/models").status == 200, "HTTP is up")
        loading = answers_until_200(node)
        assert loading <= {"model_loading"}
        node.kill("device fake-0")
        # what a dying device is given is only late
        node.wait(lambda: node.model()["status"] != "loaded", "its death is known")
        recovering = answers_until_200(node)
        assert recovering
        assert recovering <= {"model_recovering", "model_loading", "device_fault"}
        node.stop()
    finally:
        node.sweep()


def answers_until_200(node: Node) -> set[str]:
    """The codes of all refusals: each 503 with Retry-After, the model listed."""
    codes = set()
    end_s = time.monotonic() + 20
    while (reply := node.http.chat("x")).status != 200:
        assert time.monotonic() < end_s, reply.body
        assert reply.status == 503
        assert int(reply.headers["retry-after"]) >= 1
        codes.add(reply.error["code"])
        listed = [model["id"] for model in node.http.get("/v1/models").json["data"]]
        assert MODEL in listed
    return codes


def test_s32_a_stop_lets_streams_finish_and_a_token_guards_every_path(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path, config={"node": {"token": "sesame"}})
    try:
        node.start()
        node.wait_ready()
        key = {"authorization": "Bearer sesame"}
        for path in ("/health", "/models", "/v1/models", "/version", "/nowhere"):
            assert node.http.get(path).status == 401
        with node.http.stream("[[fake tokens=60 step_ms=20]]", headers=key) as stream:
            until_text(stream, 3)
            assert node.process is not None
            node.process.terminate()
            assert list(stream.data())[-1] == "[DONE]"
        assert node.process.wait(15) == 0
        node.assert_nothing_left()
    finally:
        node.sweep()
