"""A full node over real HTTP: what fits, what doesn't, and who is told which."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness import Node
from tests.httpclient import Reply

KV_BYTES = 64 << 10
WINDOWS = {
    "whole": (8192, "model"),
    "asked": (256, "setting"),
    "large": (1024, "memory"),
    "slow": (600, "prefill_rate"),
    "none": (0, "memory"),
}


def fake(name: str, context: int = 0, **options: Any) -> dict[str, Any]:
    return {"id": name, "source": "fake", "context": context, "options": options}


MODELS = [
    fake("whole"),
    fake("asked", context=256),
    fake("large", page_tokens=16, page_bytes=KV_BYTES // 64, tokens="count"),
    fake("slow", token_ms=10),
    fake("none", page_bytes=KV_BYTES + 1),
]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Five models on one device, each limited by something else."""
    config = {"engine": {"kv_bytes": KV_BYTES, "first_token_target_s": 6.0}}
    folder = tmp_path_factory.mktemp("node")
    with Node(folder, models=MODELS, config=config) as node:
        yield node


def completion(node: Node, model: str, num_prompt: int, **fields: Any) -> Reply:
    """A prompt of exactly so many tokens."""
    body = {"model": model, "prompt": [65] * num_prompt, "max_tokens": 1, **fields}
    return node.http.post("/v1/completions", body)


def held(node: Node, model: str) -> int:
    used: int = node.model(model)["kv"]["used_bytes"]
    return used


def busy(node: Node, running: int, waiting: int) -> bool:
    device = node.device("fake-0")
    return (device["running"], device["waiting"]) == (running, waiting)


@pytest.mark.parametrize("model", ["asked", "large", "whole"])
def test_s21_s26_the_limit_that_is_shown_is_the_one_enforced(
    node: Node, model: str
) -> None:
    fact = node.http.get(f"/models/{model}").json
    shown = fact["context"]
    assert (shown, fact["context_limited_by"]) == WINDOWS[model]
    assert node.http.get(f"/v1/models/{model}").json["context"] == shown
    assert completion(node, model, shown - 1).status == 200
    refused = completion(node, model, shown)
    assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")
    assert (refused.error["prompt_len"], refused.error["max"]) == (shown, shown)


def test_s21_a_prompt_that_would_take_too_long_is_refused_at_once(node: Node) -> None:
    fact = node.http.get("/models/slow").json
    assert (fact["context"], fact["context_limited_by"]) == WINDOWS["slow"]
    assert fact["rates"]["prefill_tokens_per_s"] == 100.0
    refused = completion(node, "slow", 600)
    assert (refused.status, refused.error["max"]) == (400, 600)
    assert busy(node, 0, 0)


def test_s26_what_no_shorter_prompt_would_cure_is_413(node: Node) -> None:
    assert node.http.get("/models/none").json["context"] == 0
    for reply in (
        completion(node, "none", 1),
        node.http.chat("hi", model="none"),
        node.http.chat("hi" * 50_000, model="none"),
    ):
        assert (reply.status, reply.error["code"]) == (413, "prompt_too_long_for_vram")


def test_s27_a_free_seat_without_room_for_its_cache_is_not_given(node: Node) -> None:
    """Each of the two needs more than half of the cache; there are seats for both."""
    stay = "[[fake tokens=300 step_ms=10]]" + "x" * 600
    first = node.http.stream(stay, model="large", max_tokens=300)
    node.wait(lambda: held(node, "large") > KV_BYTES // 2, "it has half of the cache")
    second = node.http.stream("x" * 700, model="large", max_tokens=3)
    assert second.status == 200
    node.wait(lambda: busy(node, 1, 1), "seats are free, bytes are not")
    first.close()
    assert second.text()
    node.wait(lambda: held(node, "large") == 0 and busy(node, 0, 0), "all came back")
    kv = node.http.get("/models/large").json["kv"]
    assert kv["budget_bytes"] == KV_BYTES
    assert (kv["page_tokens"], kv["bytes_per_token"]) == (16, 64)


ABSURD: list[tuple[dict[str, Any], str]] = [
    ({"n": 10**9}, "n"),
    ({"n": 0}, "n"),
    ({"logprobs": True, "top_logprobs": 10**6}, "top_logprobs"),
    ({"presence_penalty": 1e300}, "presence_penalty"),
    ({"frequency_penalty": -1e300}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"temperature": -1}, "temperature"),
    ({"logit_bias": {"999999": 1}}, "logit_bias"),
    ({"stop_token_ids": [2**40]}, "stop_token_ids"),
]


def test_what_makes_no_sense_is_refused_and_a_stream_beside_it_goes_on(
    node: Node,
) -> None:
    solo = node.http.chat("[[fake tokens=200]]", model="whole").text
    with node.http.stream("[[fake tokens=200 step_ms=1]]", model="whole") as beside:
        for fields, param in ABSURD:
            refused = node.http.chat("hi", model="whole", **fields)
            assert refused.status == 400, refused.body
            assert refused.error["param"] == param
        assert beside.text() == solo


@pytest.mark.parametrize("token", [258, -1, 2**31, 2**63])
def test_a_token_id_that_the_model_does_not_have_is_refused(
    node: Node, token: int
) -> None:
    body = {"model": "whole", "prompt": [65, token], "max_tokens": 1}
    refused = node.http.post("/v1/completions", body)
    assert (refused.status, refused.error["param"]) == (400, "prompt[1]")
    assert completion(node, "whole", 2).status == 200


@pytest.mark.parametrize(
    ("fault", "code"), [("oom", "insufficient_vram"), ("nan", "nan_logits")]
)
@pytest.mark.parametrize("at", [0, 20])
def test_s02_what_befalls_one_row_leaves_the_others_as_they_are(
    node: Node, fault: str, code: str, at: int
) -> None:
    """Behind the prompt (prefill) and between tokens (decode)."""
    texts = [f"[[fake tokens={60 + n} step_ms=2]]" for n in range(3)]
    solo = [node.http.chat(text, model="whole").text for text in texts]
    streams = [node.http.stream(text, model="whole") for text in texts]
    hurt = f"[[fake tokens=40 step_ms=2 fault={fault} at={at}]]"
    assert node.http.chat(hurt, model="whole").error["code"] == code
    assert [stream.text() for stream in streams] == solo
    assert node.device("fake-0")["generation"] == 1
