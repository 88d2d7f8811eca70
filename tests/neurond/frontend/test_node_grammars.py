"""Grammars that only the device can judge, over real HTTP: late, or refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness import MODEL, Node

LATE, NEVER = "late", "never"
SHAPE = {"guided_regex": "[ab]+"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    models: list[dict[str, Any]] = [
        {"id": MODEL, "source": "fake"},
        {"id": LATE, "source": "fake", "options": {"compile_ms": 1200}},
        {"id": NEVER, "source": "fake", "options": {"compile_fail": True}},
    ]
    with Node(tmp_path_factory.mktemp("node"), models=models) as node:
        yield node


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_model_can_not_obey_is_a_400_and_no_stream(
    node: Node, stream: bool
) -> None:
    reply = node.http.chat("hello", model=NEVER, stream=stream, **SHAPE)
    assert reply.status == 400
    assert reply.headers["content-type"].startswith("application/json")
    assert reply.error["param"] == "response_format"
    assert "obeys none" in reply.error["message"]


def test_streams_go_on_and_a_slow_grammar_is_waited_for(node: Node) -> None:
    """Longer than the device may otherwise take to decide."""
    with node.http.stream("[[fake tokens=4000 step_ms=10]]") as running:
        frames = running.data()
        next(frames)
        began_s = time.monotonic()
        reply = node.http.chat("hello", model=LATE, **SHAPE)
        took_s = time.monotonic() - began_s
        texts = [next(frames) for _ in range(20)]
    assert (reply.status, reply.text) == (200, "echo: hello")
    assert took_s > 1
    assert all("choices" in text for text in texts)
