"""Vectors over HTTP from a whole node on the fake device."""

from __future__ import annotations

import base64
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from neurond.device.fakescript import DIMENSIONS, vector
from tests.harness import Node
from tests.httpclient import Reply

PATH = "/v1/embeddings"
MODELS: list[dict[str, Any]] = [
    {
        "id": "vectors",
        "source": "fake",
        "context": 64,
        "options": {"kind": "embedding", "matryoshka": True},
    },
    {"id": "uncut", "source": "fake", "options": {"kind": "embedding"}},
    {
        "id": "slow",
        "source": "fake",
        "options": {"kind": "embedding", "prefill_ms": 150},
    },
    {"id": "tiny", "source": "fake"},
]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Node(tmp_path_factory.mktemp("embeddings"), models=MODELS) as running:
        yield running


def embed(node: Node, given: Any, *, model: str = "vectors", **fields: Any) -> Reply:
    return node.http.post(PATH, {"model": model, "input": given, **fields})


def expected(text: str) -> list[float]:
    return list(struct.unpack(f"<{DIMENSIONS}f", vector(list(text.encode()))))


def test_a_text_gives_its_vector_and_counts_its_tokens(node: Node) -> None:
    answer = embed(node, "hello", user="someone").json
    assert answer == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": expected("hello")}],
        "model": "vectors",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }


def test_many_inputs_come_back_in_their_order(node: Node) -> None:
    texts = [f"text {number}" for number in range(200)]
    answer = embed(node, texts).json
    assert [item["index"] for item in answer["data"]] == list(range(200))
    assert [item["embedding"] for item in answer["data"]] == list(map(expected, texts))
    assert answer["usage"]["total_tokens"] == sum(map(len, texts))


def test_the_most_inputs_allowed_are_answered(node: Node) -> None:
    assert len(embed(node, ["a"] * 2048, encoding_format="base64").json["data"]) == 2048


def test_ids_stand_for_themselves(node: Node) -> None:
    one, several = embed(node, [104, 105]).json, embed(node, [[104], [105]]).json
    assert [item["embedding"] for item in one["data"]] == [expected("hi")]
    assert [item["embedding"] for item in several["data"]] == [
        expected("h"),
        expected("i"),
    ]


def test_base64_holds_little_endian_floats(node: Node) -> None:
    item = embed(node, "hello", encoding_format="base64").json["data"][0]
    raw = base64.b64decode(item["embedding"])
    assert list(struct.unpack(f"<{DIMENSIONS}f", raw)) == expected("hello")


def test_fewer_dimensions_are_cut_and_brought_back_to_length_one(node: Node) -> None:
    item = embed(node, "hello", dimensions=4).json["data"][0]
    kept = expected("hello")[:4]
    length = sum(x * x for x in kept) ** 0.5
    assert item["embedding"] == pytest.approx([x / length for x in kept], abs=1e-6)


REFUSED: list[tuple[Any, dict[str, Any], int, str, str]] = [
    ("x" * 65, {}, 400, "context_length_exceeded", "input"),
    (["x", "x" * 65], {}, 400, "context_length_exceeded", "input[1]"),
    ("x" * 20_000, {}, 400, "context_length_exceeded", "input"),
    ([1] * 65, {}, 400, "context_length_exceeded", "input"),
    ("x", {"dimensions": 9}, 400, "invalid_request_error", "dimensions"),
    (
        "x",
        {"dimensions": 4, "model": "uncut"},
        400,
        "unsupported_parameter",
        "dimensions",
    ),
    ("x", {"model": "tiny"}, 422, "wrong_modality", "model"),
    ("x", {"model": "nobody"}, 404, "model_not_found", "model"),
    ([258], {}, 400, "invalid_request_error", "input"),
]


@pytest.mark.parametrize(("given", "fields", "status", "code", "param"), REFUSED)
def test_what_cannot_be_served_is_refused_by_name(  # noqa: PLR0913
    node: Node,
    given: Any,
    fields: dict[str, Any],
    status: int,
    code: str,
    param: str,
) -> None:
    reply = node.http.post(PATH, {"model": "vectors", "input": given, **fields})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (
        status,
        code,
        param,
    )


def test_a_text_over_the_window_is_told_both_figures(node: Node) -> None:
    error = embed(node, "x" * 65).error
    assert (error["prompt_len"], error["max"]) == (65, 64)


def test_a_text_that_fills_the_window_is_served(node: Node) -> None:
    assert embed(node, "x" * 64).status == 200


def test_a_model_for_vectors_refuses_to_chat_and_says_what_it_does(node: Node) -> None:
    reply = node.http.chat("hello", model="vectors")
    assert (reply.status, reply.error["code"]) == (422, "wrong_modality")
    assert "/v1/embeddings" in reply.error["message"]


def test_s09_the_device_stops_soon_after_a_client_that_leaves(node: Node) -> None:
    before = computed(node)
    body = json.dumps({"model": "slow", "input": ["text"] * 2000}).encode()
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
    with socket.create_connection((node.http.host, node.http.port)) as client:
        client.sendall(head + b"\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        node.wait(lambda: computed(node) > before, "the first vectors")
    node.wait(lambda: in_work(node) == 0, "the device goes on", 3)
    assert computed(node) - before < 200


def computed(node: Node) -> int:
    found: int = node.device("fake-0")["counters"]["requests_finished_total"]
    return found


def in_work(node: Node) -> int:
    device = node.device("fake-0")
    return int(device["running"]) + int(device["waiting"])


def test_models_say_what_they_do(node: Node) -> None:
    reply = node.http.get("/models/vectors/capabilities").json
    assert reply["capabilities"]["embedding"] is True
    assert reply["capabilities"]["chat"] is False
    assert node.model("vectors")["dimensions"] == DIMENSIONS
