"""Deaths of a node's processes and orders to it: a real node on two fake devices.

One node for the whole file. Every test leaves it ready, with "tiny" on one device and
"other" on the second.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from ipc.errors import ClientError
from tests.harness import MODEL, Node
from tests.httpclient import text_of
from tests.neurond.lives import (
    answers,
    device_of,
    events,
    is_life,
    last_event,
    lives,
    story_of,
    until_some_text,
    wait_for_generation,
    wait_until_ready,
)

OTHER = "other"
SLOW = "slow"
MEDIUM = "medium"
DECODE_DEADLINE_S = 1.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    load_ms = {MODEL: 0, OTHER: 0, SLOW: 60_000, MEDIUM: 400}
    listed = [
        {"id": name, "source": "fake", "options": {"load_ms": value}}
        for name, value in load_ms.items()
    ]
    config: dict[str, dict[str, Any]] = {
        "models": {"default": [MODEL]},
        "limits": {"decode_deadline_s": DECODE_DEADLINE_S},
    }
    folder = tmp_path_factory.mktemp("node")
    with Node(folder, devices=2, models=listed, config=config) as node:
        free = {"fake-0", "fake-1"} - {device_of(node, MODEL)}
        node.control("load", model_id=OTHER, devices=sorted(free))
        yield node


@pytest.fixture
def device(node: Node) -> str:
    return device_of(node, MODEL)


def test_a_killed_device_comes_back_one_generation_on_with_its_model(
    node: Node, device: str
) -> None:
    since = last_event(node)
    before = node.device(device)
    assert node.kill(f"device {device}") == before["pid"]
    wait_for_generation(node, device, before["generation"] + 1)
    after = node.device(device)
    assert after["models"] == [MODEL]
    assert after["deaths_total"] == before["deaths_total"] + 1
    assert story_of(node, device, since) == [
        ("device.died", before["generation"]),
        ("device.starting", after["generation"]),
        ("device.ready", after["generation"]),
    ]
    died = next(e for e in events(node, since) if e["kind"] == "device.died")
    assert died["reason"] == "killed by SIGKILL"


def test_devices_outlive_the_zygote_and_a_new_one_serves_their_next_death(
    node: Node, device: str
) -> None:
    since = last_event(node)
    before = lives(node)
    with node.http.stream("[[fake tokens=120 step_ms=5]]") as stream:
        rest = until_some_text(stream)
        zygote = node.kill("zygote")
        documents = list(rest)
    assert len(text_of(documents)) == 120
    assert documents[-1] == "[DONE]"
    node.wait(lambda: node.find("zygote").pid != zygote, "no new zygote")
    assert lives(node) == before
    assert answers(node, MODEL)
    assert answers(node, OTHER)
    assert "zygote.died" in [e["kind"] for e in events(node, since)]
    successor = node.find("zygote").pid
    node.kill(f"device {device}")
    wait_for_generation(node, device, before[device][1] + 1)
    assert node.find("zygote").pid == successor
    assert "can't fork" not in node.log.read_text()


def test_s12_a_device_that_stands_still_in_a_step_is_killed_by_its_deadline(
    node: Node, device: str
) -> None:
    since = last_event(node)
    before = node.device(device)["generation"]
    with node.http.stream("[[fake tokens=60 step_ms=50]]") as stream:
        rest = until_some_text(stream)
        node.kill(f"device {device}", signal.SIGSTOP)
        stopped_s = time.monotonic()
        documents = list(rest)
    assert len(text_of(documents)) == 60
    assert documents[-1] == "[DONE]"
    assert time.monotonic() - stopped_s >= DECODE_DEADLINE_S - 0.1
    wait_for_generation(node, device, before + 1)
    died = next(e for e in events(node, since) if e["kind"] == "device.died")
    assert died["reason"] == "decode took longer than its deadline"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("exit111", "exit 111 (temporary)"),
        ("segv", "killed by SIGSEGV"),
        ("device_assert", "device fault, AcceleratorError"),
    ],
)
def test_each_way_to_die_is_told_apart_and_survived(
    node: Node, device: str, fault: str, reason: str
) -> None:
    since = last_event(node)
    before = node.device(device)["generation"]
    once = f"[[fake tokens=40 step_ms=9 fault={fault} at=9 attempts=1]]"
    with node.http.stream(once) as stream:
        documents = list(stream.data())
    assert len(text_of(documents)) == 40
    assert documents[-1] == "[DONE]"
    wait_for_generation(node, device, before + 1)
    died = next(e for e in events(node, since) if e["kind"] == "device.died")
    assert reason in died["reason"]
    if fault == "device_assert":
        last = node.device(device)["last_fault"]
        assert (last["class"], last["type"]) == ("device", "AcceleratorError")
        assert "device-side assert" in last["chain"][0]
        shown = node.http.get("/discovery")
        assert b"device-side assert" not in shown.body
        assert b"AcceleratorError" in shown.body


def test_s02_s06_what_a_request_does_to_itself_costs_no_device(node: Node) -> None:
    before = lives(node)
    for fault in ("nan", "shape", "host_error"):
        assert node.http.chat(f"[[fake fault={fault}]]").status >= 500
    assert lives(node) == before
    assert answers(node)


def test_s15_five_loads_at_once_are_one_load_and_five_answers(node: Node) -> None:
    since = last_event(node)
    with ThreadPoolExecutor(5) as pool:
        order = {"model_id": MEDIUM}
        tries = [pool.submit(node.http.post, "/models/load", order) for _ in range(5)]
        replies = [one.result() for one in tries]
    assert [reply.status for reply in replies] == [200] * 5
    assert {reply.json["status"] for reply in replies} == {"loaded"}
    mine = [e["kind"] for e in events(node, since) if e.get("model") == MEDIUM]
    assert mine == ["model.loading", "model.loaded"]
    assert node.http.post("/models/unload", {"model_id": MEDIUM}).status == 200


def test_an_order_on_an_old_version_is_412_and_changes_nothing(node: Node) -> None:
    old = node.http.get("/models").headers["etag"]
    assert node.http.post("/models/load", {"model_id": MEDIUM}).status == 200
    stale = {"if-match": old}
    for order, model in (("unload", MEDIUM), ("load", SLOW)):
        reply = node.http.post(f"/models/{order}", {"model_id": model}, stale)
        assert reply.status == 412, order
    assert node.model(MEDIUM)["status"] == "loaded"
    assert node.model(SLOW)["status"] == "unloaded"
    fresh = {"if-match": node.http.get("/models").headers["etag"]}
    assert node.http.post("/models/unload", {"model_id": MEDIUM}, fresh).status == 200


def test_an_unload_waits_for_what_runs_and_the_model_can_be_loaded_again(
    node: Node, device: str
) -> None:
    with node.http.stream("[[fake tokens=100 step_ms=5]]") as stream:
        rest = until_some_text(stream)
        assert node.http.post("/models/unload", {"model_id": MODEL}).status == 200
        documents = list(rest)
    assert len(text_of(documents)) == 100
    assert documents[-1] == "[DONE]"
    assert node.model()["status"] == "unloaded"
    assert node.http.chat().status == 503
    order = {"model_id": MODEL, "devices": [device]}
    assert node.http.post("/models/load", order).status == 200
    assert answers(node)


def test_a_model_whose_load_kills_twice_is_failed_and_its_device_serves(
    node: Node,
) -> None:
    device = device_of(node, OTHER)
    first = node.device(device)["generation"]
    node.control("load", model_id=SLOW, devices=[device], wait=False)
    for life in (first, first + 1):
        loads = partial(is_life, node, device, life, phase="load")
        node.wait(loads, "no load begins")
        assert node.model(SLOW)["status"] == "loading"
        node.kill(f"device {device}")
    node.wait(lambda: node.model(SLOW)["status"] == "failed", "it is tried for ever")
    assert "died twice while it loaded" in node.model(SLOW)["reason"]
    version = node.http.get("/models").headers["etag"]
    assert node.control("unload", model_id=SLOW)["status"] == "unloaded"
    node.wait(lambda: node.http.get("/models").headers["etag"] != version, "no news")
    wait_for_generation(node, device, first + 2)
    assert node.device(device)["models"] == [OTHER]


def test_s17_five_lives_without_a_token_take_a_device_out_and_nothing_else(
    node: Node, device: str
) -> None:
    victim = device_of(node, OTHER)
    healthy = lives(node)[device]
    assert answers(node, OTHER)  # its next death is no unproductive one
    killed = 0
    deaths = node.device(victim)["deaths_total"]
    while node.device(victim)["state"] != "failed":
        node.kill(f"device {victim}")
        killed += 1
        over = partial(is_over, node, victim, deaths + killed)
        node.wait(over, "it stays away")
    assert killed == 6
    assert "5 lives without a token" in node.device(victim)["reason"]
    assert node.facts()["state"] == "impaired"
    assert answers(node, MODEL)
    assert lives(node)[device] == healthy
    assert node.model(OTHER)["status"] == "failed"
    assert node.http.chat(model=OTHER).status == 503

    node.control("respawn", device=victim)
    node.wait(lambda: node.device(victim)["state"] == "ready", "it stays failed")
    order = {"model_id": OTHER, "devices": [victim]}
    assert node.control("load", order)["status"] == "loaded"
    node.wait(lambda: answers(node, OTHER), "it is silent")


def is_over(node: Node, device: str, deaths: int) -> bool:
    """That death was counted, and what follows it has followed."""
    fact = node.device(device)
    return fact["deaths_total"] == deaths and fact["state"] in ("ready", "failed")


def test_an_ordered_respawn_is_charged_to_nobody(node: Node, device: str) -> None:
    first = node.device(device)["generation"]
    for generation in range(first + 1, first + 7):
        node.control("respawn", device=device)
        wait_until_ready(node, device, generation)
    wait_for_generation(node, device, first + 6)
    with pytest.raises(ClientError, match="there is no device fake-9"):
        node.control("respawn", device="fake-9")
