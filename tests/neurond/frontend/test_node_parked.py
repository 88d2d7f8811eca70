"""Requests of a real node that wait: for a device that comes back, or for another."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import MODEL, Node
from tests.httpclient import text_of

LONG = "[[fake tokens=120 step_ms=10]]"
BEGUN = 5


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path, devices=2, options={"load_ms": 200}) as node:
        yield node


def begun(node: Node, text: str = LONG) -> tuple[Any, Iterator[Any], list[Any]]:
    """A stream, its documents to come, and those that were seen."""
    stream = node.http.stream(text)
    documents = stream.data()
    seen = [next(documents) for _ in range(BEGUN)]
    return stream, documents, seen


def home(node: Node) -> str:
    name: str = node.model()["devices"][0]
    return name


def kill_until_failed(node: Node, device: str) -> None:
    """Kill every life of it before it does anything."""
    end_s = time.monotonic() + 30
    while node.device(device)["state"] != "failed":
        assert time.monotonic() < end_s, node.tail()
        try:
            node.kill(f"device {device}")
        except LookupError:
            pass
        time.sleep(0.02)


def test_a_device_that_is_taken_out_leaves_its_requests_to_another(node: Node) -> None:
    wanted = node.http.chat(LONG).text
    first = home(node)
    stream, documents, seen = begun(node)
    gone, _, _ = begun(node)
    node.kill(f"device {first}")
    gone.close()  # a client that leaves meanwhile
    kill_until_failed(node, first)
    seen += documents
    assert seen[-1] == "[DONE]"
    assert text_of(seen) == wanted
    stream.close()
    second = home(node)
    assert second != first
    after = node.device(second)
    assert (after["running"], after["waiting"]) == (0, 0)
    assert after["counters"]["requests_total"] == 1  # not the one that left
    assert "neurond_requests_resumed_total" in _metrics(node)


def test_s32_a_stream_over_a_death_ends_within_the_drain(tmp_path: Path) -> None:
    node = Node(tmp_path)
    try:
        node.start()
        node.wait_ready()
        stream, documents, seen = begun(node)
        assert node.process is not None
        node.process.terminate()
        node.kill(f"device {home(node)}")
        seen += documents
        assert seen[-1] == "[DONE]"
        assert text_of(seen) == "".join(f"w{n} " for n in range(99))[:120]
        stream.close()
        assert node.process.wait(15) == 0
        node.assert_nothing_left()
    finally:
        node.sweep()


def _metrics(node: Node) -> str:
    from tests.httpclient import Http

    address = node.facts()["listen"]["metrics"]
    return Http(address, MODEL).get("/metrics").body.decode()
