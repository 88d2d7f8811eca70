"""Two principals through a gateway and a node: one takes every seat (S31)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Daemon, Node
from tests.httpclient import Http, Stream

TOKEN = "sesame"
SEATS = 2
HOG, PERSON = "127.0.0.2", "127.0.0.3"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    config = {
        "node": {"token": TOKEN},
        "engine": {"max_running": SEATS},
        "limits": {"drain_s": 1},
    }
    with Node(tmp_path, config=config) as node:
        yield node


@pytest.fixture
def gateway(tmp_path: Path, node: Node) -> Iterator[str]:
    """Its address."""
    neuron = {"name": "one", "endpoint": node.http.url, "token": TOKEN}
    listen = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0"}
    config = {"gateway": {**listen, "workers": 1, "drain_s": 1}, "neurons": [neuron]}
    daemon = Daemon(tmp_path, "cortexd", config)
    daemon.start()
    try:
        daemon.wait(lambda: daemon.facts()["state"] == "ready", "the gateway is ready")
        yield daemon.facts()["listen"]["http"]
        daemon.terminate()
    finally:
        daemon.sweep()


def counts(node: Node) -> tuple[int, int]:
    device = node.device("fake-0")
    return device["running"], device["waiting"]


def test_s31_who_takes_every_seat_does_not_keep_another_waiting(
    node: Node, gateway: str
) -> None:
    """The hog's queue is long; a person who comes last gets the first seat."""
    hog, person = (Http(gateway, "tiny", source) for source in (HOG, PERSON))
    job = "[[fake tokens=60 step_ms=5]]"
    jobs: list[Stream] = [hog.stream(f"{job} {n}") for n in range(10)]
    node.wait(lambda: counts(node) == (SEATS, 8), "every seat is the hog's")
    assert person.chat("[[fake tokens=1]]").status == 200
    running, waiting = counts(node)
    assert running + waiting >= 6, "the person was served ahead of the hog's queue"
    for stream in jobs:
        stream.close()
    node.wait(lambda: counts(node) == (0, 0), "nobody is left")


def test_a_client_can_not_name_another_principal(node: Node, gateway: str) -> None:
    """Neither through the gateway nor at the node without its token."""
    hog = Http(gateway, "tiny", HOG)
    job = "[[fake tokens=60 step_ms=5]]"
    jobs = [hog.stream(job) for _ in range(6)]
    node.wait(lambda: counts(node) == (SEATS, 4), "every seat is the hog's")
    cheat = hog.stream("[[fake tokens=1]]", headers={"x-cortex-principal": "other"})
    assert cheat.status == 200
    started_s = time.monotonic()
    assert cheat.text()
    assert time.monotonic() - started_s > 0.2
    assert sum(counts(node)) <= SEATS, "it came after all that was there before"
    for stream in jobs:
        stream.close()
    refused = node.http.chat("x")
    assert refused.status == 401
