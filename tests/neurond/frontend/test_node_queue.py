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
