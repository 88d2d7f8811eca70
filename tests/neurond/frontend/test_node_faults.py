"""Deaths and stops of a real node, as its clients see them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness import MODEL, Node
from tests.httpclient import text_of


def until_text(stream: Any, chars: int) -> str:
    """Read until so much text is here."""
    seen = ""
    for document in stream.data():
        seen += text_of([document])
        if len(seen) >= chars:
            return seen
    raise AssertionError(f"the stream ended after {seen!r}")


@pytest.mark.parametrize("fault", ["exit111", "sigkill"])
def test_a_device_that_dies_ends_its_streams_with_an_error_and_serves_again(
    tmp_path: Path, fault: str
) -> None:
    with Node(tmp_path) as node:
        before = node.device("fake-0")["generation"]
        killer = f"[[fake tokens=400 step_ms=5 fault={fault} at=30]]"
        with node.http.stream(killer) as stream:
            documents = list(stream.data())
        assert documents[-1]["error"]["code"] in ("device_fault", "model_recovering")
        assert "[DONE]" not in documents
        reply = node.http.chat(killer)
        assert reply.status == 503
        assert int(reply.headers["retry-after"]) >= 1
        node.wait_ready()
        assert node.device("fake-0")["generation"] > before
        assert node.http.chat("again").text == "echo: again"


def test_a_device_dies_alone(tmp_path: Path) -> None:
    models = [
        {"id": name, "source": "fake", "options": {}} for name in (MODEL, "other")
    ]
    with Node(tmp_path, devices=2, models=models) as node:
        places = {model["id"]: model["devices"] for model in node.facts()["models"]}
        if places[MODEL] == places["other"]:
            pytest.skip("both models were placed on one device")
        slow = "[[fake tokens=60 step_ms=20]]"
        with node.http.stream(slow, model="other") as neighbour:
            until_text(neighbour, 5)
            node.kill(f"device {places[MODEL][0]}")
            assert list(neighbour.data())[-1] == "[DONE]"


def test_s14_while_the_device_comes_back_it_is_503_never_404(tmp_path: Path) -> None:
    with Node(tmp_path, options={"load_ms": 600}) as node:
        node.kill("device fake-0")
        seen = set()
        end_s = time.monotonic() + 15
        while time.monotonic() < end_s:
            reply = node.http.chat("x")
            if reply.status == 200:
                break
            seen.add((reply.status, reply.error["code"]))
            assert int(reply.headers["retry-after"]) >= 1
        assert reply.status == 200
        codes = {"model_recovering", "model_loading", "device_fault"}
        assert seen <= {(503, code) for code in codes}
        assert seen


def test_a_worker_that_dies_is_replaced_and_its_requests_are_dropped(
    tmp_path: Path,
) -> None:
    with Node(tmp_path) as node:
        stream = node.http.stream("[[fake tokens=4000 step_ms=10]]")
        until_text(stream, 3)
        old = node.kill("worker 1")
        node.wait(lambda: node.find("worker 1").pid != old, "a new worker")
        node.wait_ready()
        assert node.http.chat("x").text == "echo: x"
        node.wait(lambda: node.device("fake-0")["running"] == 0, "dropped", 5)
        stream.close()


def test_s32_a_stop_lets_running_streams_finish_and_refuses_new_ones(
    tmp_path: Path,
) -> None:
    with (
        Node(tmp_path) as node,
        node.http.stream("[[fake tokens=60 step_ms=20]]") as stream,
    ):
        until_text(stream, 3)
        assert node.process is not None
        node.process.terminate()
        documents = list(stream.data())
        assert documents[-1] == "[DONE]"
        assert node.process.wait(15) == 0
        node.assert_nothing_left()


def test_models_load_and_unload_over_http_and_events_tell_of_it(tmp_path: Path) -> None:
    with Node(tmp_path) as node:
        http = node.http
        with http.follow("/events") as events:
            frames = events.frames()
            assert next(frames) == ": events"
            done = http.post("/models/unload", {"model_id": MODEL})
            assert (done.status, done.json["status"]) == (200, "unloaded")
            assert http.chat("x").error["code"] == "no_healthy_node"
            stale = http.post(
                "/models/load", {"model_id": MODEL}, {"if-match": '"old.1"'}
            )
            assert stale.status == 412
            accepted = http.post("/models/load?wait=0", {"model_id": MODEL})
            assert accepted.status == 202
            again = http.post("/models/load", {"model_id": MODEL})
            assert (again.status, again.json["status"]) == (200, "loaded")
            assert again.headers["etag"] == http.get("/models").headers["etag"]
            assert http.chat("x").status == 200
            text = ""
            for frame in frames:
                text += frame
                if "model.loaded" in text:
                    break
            assert "model.unloaded" in text


def test_s33_the_list_is_whole_while_models_load(tmp_path: Path) -> None:
    node = Node(tmp_path, options={"load_ms": 1500})
    try:
        node.start()
        node.wait(lambda: node.http.get("/v1/models").status == 200, "HTTP is up")
        listed = [m["id"] for m in node.http.get("/v1/models").json["data"]]
        assert MODEL in listed
        if node.model()["status"] != "loaded":
            reply = node.http.chat("x")
            assert reply.error["code"] == "model_loading"
            assert "percent" in reply.error
        node.wait_ready()
        assert node.http.chat("x").status == 200
        node.stop()
    finally:
        node.sweep()


def test_a_configured_token_is_needed_for_everything(tmp_path: Path) -> None:
    node = Node(tmp_path, config={"node": {"token": "sesame"}})
    try:
        node.start()
        node.wait(lambda: node.model()["status"] == "loaded", "loaded")
        key = {"authorization": "Bearer sesame"}
        for path in ("/health", "/models", "/v1/models", "/version"):
            assert node.http.get(path).status == 401
            assert node.http.get(path, key).status == 200
        node.stop()
    finally:
        node.sweep()
