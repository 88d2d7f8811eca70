"""A full node over real HTTP: refused at once, and free again when somebody leaves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Node
from tests.httpclient import Stream

ENDLESS = "[[fake tokens=5000 step_ms=5]]"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """One sequence runs, one waits, there is no third place."""
    config = {"engine": {"max_running": 1}, "limits": {"max_queue": 2, "drain_s": 2}}
    with Node(tmp_path, config=config) as node:
        yield node


def busy(node: Node, running: int, waiting: int) -> bool:
    device = node.device("fake-0")
    return (device["running"], device["waiting"]) == (running, waiting)


def opened(node: Node) -> Stream:
    """A stream that the device has accepted."""
    stream = node.http.stream(ENDLESS)
    assert stream.status == 200
    return stream


def test_s22_s24_a_full_node_says_when_to_ask_again_and_shows_itself_meanwhile(
    node: Node,
) -> None:
    """The first to end has five seconds of tokens left at most."""
    with node.http.stream(ENDLESS, max_tokens=1000), opened(node):
        node.wait(lambda: busy(node, 1, 1), "one runs, one waits")
        rates = "/models/tiny"
        node.wait(
            lambda: bool(node.http.get(rates).json["rates"]["decode_tokens_per_s"]),
            "the rate has been measured and told",
        )
        took_s = []
        for _ in range(10):
            began_s = time.monotonic()
            refused = node.http.chat("hi")
            assert (refused.status, refused.error["code"]) == (429, "queue_full")
            assert 2 <= int(refused.headers["retry-after"]) <= 10
            assert refused.error["retry_after"] == int(refused.headers["retry-after"])
            assert node.http.get("/health").status == 200
            assert node.http.get("/models").json["models"][0]["waiting"] <= 1
            took_s.append(time.monotonic() - began_s)
        assert sorted(took_s)[5] < 0.25, took_s


def test_s22_who_waited_too_long_is_told_so_and_when_to_come_back(
    tmp_path: Path,
) -> None:
    limits = {"queue_deadline_s": 0.5, "drain_s": 2}
    config = {"engine": {"max_running": 1}, "limits": limits}
    with Node(tmp_path, config=config) as node:
        running = node.http.stream(ENDLESS, max_tokens=2000)
        node.wait(lambda: busy(node, 1, 0), "one runs")
        with opened(node) as waiting:
            documents = list(waiting.data())
        last = documents[-1]["error"]
        assert (last["code"], "[DONE]" in documents) == ("overloaded", False)
        assert 2 <= last["retry_after"] <= 30
        late = node.http.chat("hi")
        assert (late.status, late.error["code"]) == (503, "overloaded")
        assert 2 <= int(late.headers["retry-after"]) <= 30
        running.close()
        node.wait(lambda: busy(node, 0, 0), "nobody is left")
        assert node.http.chat("hi").text == "echo: hi"


def test_s22_s23_more_clients_than_places(node: Node) -> None:
    running, waiting = opened(node), opened(node)
    node.wait(lambda: busy(node, 1, 1), "one runs, one waits")
    started_s = time.monotonic()
    for asked in ({}, {"stream": True}, {"n": 2}):
        refused = node.http.chat("hi", **asked)
        assert (refused.status, refused.error["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
    assert time.monotonic() - started_s < 3
    waiting.close()
    node.wait(lambda: busy(node, 1, 0), "who left the queue left its place")
    with opened(node):
        node.wait(lambda: busy(node, 1, 1), "the place was taken again")
    running.close()
    node.wait(lambda: busy(node, 0, 0), "nobody is left")
    assert node.http.chat("hi").text == "echo: hi"
    assert node.http.chat("hi", n=2).status == 200
