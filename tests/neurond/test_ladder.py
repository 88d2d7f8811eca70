"""The recovery ladder on a real node: who is blamed, who comes back, and as what.

One node for the whole file, with "tiny" on one fake device and "other" on the second;
simulated faults are allowed. Every test leaves both ready.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.harness import MODEL, Node
from tests.httpclient import text_of
from tests.neurond.lives import (
    answers,
    device_of,
    events,
    last_event,
    lives,
    story_of,
    wait_for_generation,
    wait_until_ready,
)

OTHER = "other"
GIB = 1 << 30
LATE_S = 0.6


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    late = {"memory_bytes": 5 * GIB, "free_after_ms": LATE_S * 1e3, "load_ms": 200}
    listed: list[dict[str, Any]] = [
        {"id": MODEL, "source": "fake"},
        {"id": OTHER, "source": "fake", "options": late},
    ]
    config: dict[str, dict[str, Any]] = {
        "models": {"default": [MODEL]},
        "faults": {"injection": True},
    }
    folder = tmp_path_factory.mktemp("ladder")
    with Node(folder, devices=2, models=listed, config=config) as node:
        free = {"fake-0", "fake-1"} - {device_of(node, MODEL)}
        node.control("load", model_id=OTHER, context=512, devices=sorted(free))
        yield node


@pytest.fixture
def device(node: Node) -> str:
    return device_of(node, MODEL)


def streamed(node: Node, message: str) -> tuple[str, Any]:
    """The text of an answer, and what it ended with."""
    with node.http.stream(message) as stream:
        documents = list(stream.data())
    return text_of(documents), documents[-1]


def kinds_since(node: Node, since: int) -> list[str]:
    return [event["kind"] for event in events(node, since)]


def test_s16_a_request_that_kills_is_quarantined_and_the_rest_come_through(
    node: Node, device: str
) -> None:
    since = last_event(node)
    before = node.device(device)
    killer = "[[fake tokens=40 step_ms=5 fault=segv at=12]]"
    innocent = [f"[[fake tokens={60 + n} step_ms=5]]" for n in range(5)]
    with ThreadPoolExecutor(6) as pool:
        tries = [pool.submit(streamed, node, text) for text in (*innocent, killer)]
        *whole, (_, end) = [one.result() for one in tries]
    for number, (text, last) in enumerate(whole):
        assert len(text) == 60 + number
        assert last == "[DONE]"
    assert end["error"]["code"] == "request_quarantined"
    wait_until_ready(node, device, before["generation"] + 2)

    convicted = [e for e in events(node, since) if e["kind"] == "request.quarantined"]
    assert [event["model"] for event in convicted] == [MODEL]
    died = [e for e in events(node, since) if e["kind"] == "device.died"]
    assert [event.get("convicted", 0) for event in died] == [0, 1]
    assert died[0]["suspects"] >= 1
    held = node.facts()["quarantined"]
    assert [entry["model"] for entry in held] == [MODEL]
    assert held[0]["fingerprint"] == convicted[0]["fingerprint"]
    after = node.device(device)
    assert after["convicted_total"] == before["convicted_total"] + 1
    assert after["faults_total"]["crash"] == before["faults_total"].get("crash", 0) + 2

    node.wait(lambda: node.http.chat(killer).status == 422, "a retry is let in")
    refused = node.http.chat(killer)
    assert refused.json["error"]["code"] == "request_quarantined"
    assert node.device(device)["generation"] == before["generation"] + 2
    assert answers(node)


def test_s19_a_respawned_device_that_answers_wrongly_gets_no_request(
    node: Node, device: str
) -> None:
    since = last_event(node)
    assert answers(node)
    first = node.device(device)["generation"]
    node.control("inject", device=device, kind="wrong_result")
    node.kill(f"device {device}")
    wait_for_generation(node, device, first + 2)
    assert story_of(node, device, since) == [
        ("device.died", first),
        ("device.starting", first + 1),
        ("device.wrong_result", first + 1),
        ("device.died", first + 1),
        ("device.starting", first + 2),
        ("device.ready", first + 2),
    ]
    assert node.device(device)["faults_total"]["wrong_result"] == 1
    assert node.model()["status"] == "loaded"


def test_s11_s35_a_model_comes_back_as_it_was_ordered_once_its_memory_is(
    node: Node,
) -> None:
    device = device_of(node, OTHER)
    assert answers(node, OTHER)
    since = last_event(node)
    healthy = lives(node)[device_of(node, MODEL)]
    first = node.device(device)["generation"]
    node.kill(f"device {device}")
    node.wait(lambda: node.model(OTHER)["status"] == "recovering", "nobody noticed")
    node.wait(lambda: node.http.chat(model=OTHER).status == 503, "it is not refused")
    refused = node.http.chat(model=OTHER)
    assert refused.json["error"]["code"] == "model_recovering"
    assert float(refused.headers["retry-after"]) >= 1
    joined = node.control("load", model_id=OTHER)  # no second load beside the first
    assert joined["status"] in ("loaded", "recovering")
    wait_for_generation(node, device, first + 1)
    assert node.model(OTHER)["context"] == 512
    assert kinds_since(node, since) == [
        "device.died",
        "device.starting",
        "model.loaded",
        "device.ready",
    ]
    recovery = node.device(device)["recovery"]
    assert LATE_S - 0.1 <= recovery["memory_s"] < LATE_S + 2
    assert recovery["reload_s"] >= 0.15
    assert lives(node)[device_of(node, MODEL)] == healthy


def test_s01_a_simulated_fault_is_seen_everywhere_and_the_stream_goes_on(
    node: Node, device: str
) -> None:
    since = last_event(node)
    first = node.device(device)["generation"]
    order = {"device": device, "kind": "device_assert", "at_step": 10}
    assert node.control("inject", order)["generation"] == first
    text, last = streamed(node, "[[fake tokens=50 step_ms=5]]")
    assert (len(text), last) == (50, "[DONE]")
    wait_for_generation(node, device, first + 1)
    (died,) = [e for e in events(node, since) if e["kind"] == "device.died"]
    assert died["reason"] == "device fault, AcceleratorError"
    assert died["suspects"] == 1
    assert node.device(device)["faults_total"]["device"] == 1
    assert "model marked poisoned" in node.log.read_text()
    shown = node.http.get("/discovery").json["devices"]
    assert [d["last_fault"]["type"] for d in shown if d["device"] == device] == [
        "AcceleratorError"
    ]


def test_a_suspect_that_does_no_harm_runs_among_the_others_again(
    node: Node, device: str
) -> None:
    """It died once beside a fault of its own making; later it does nothing."""
    first = node.device(device)["generation"]
    once = "[[fake tokens=60 step_ms=5 fault=abort at=9 attempts=1]]"
    with ThreadPoolExecutor(3) as pool:
        tries = [pool.submit(streamed, node, once) for _ in range(3)]
        ends = [one.result() for one in tries]
    assert [(len(text), last) for text, last in ends] == [(60, "[DONE]")] * 3
    wait_for_generation(node, device, first + 1)
    assert len(node.facts()["quarantined"]) == 1  # that of the first test


def test_faults_are_listed(node: Node) -> None:
    told = node.control("faults")
    assert told["injection"] is True
    assert {"device_assert", "hang", "sigkill", "wrong_result", "xid:N"} <= {
        row["kind"] for row in told["kinds"]
    }
    assert {"prefill", "decode", "trial", "load"} <= set(told["points"])
