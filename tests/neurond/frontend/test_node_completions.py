"""Texts and tokens of a real node on a fake device, asked over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from neurond.device.fakescript import IM_END
from tests.harness import MODEL, Node

PATH = "/v1/completions"
OTHER = "other"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    models = [{"id": name, "source": "fake"} for name in (MODEL, OTHER)]
    config = {"models": {"default": [MODEL]}}
    folder = tmp_path_factory.mktemp("node")
    with Node(folder, models=models, config=config) as node:
        yield node


@pytest.fixture
def client(node: Node) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{node.http.url}/v1", api_key="placeholder")


def post(node: Node, path: str, **fields: Any) -> Any:
    return node.http.post(path, {"model": MODEL, **fields})


def test_the_openai_sdk_gets_a_text_and_a_stream(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="grüße 😀", max_tokens=50)
    assert whole.choices[0].text == "echo: grüße 😀"
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 18
    chunks = list(
        client.completions.create(
            model=MODEL,
            prompt=["grüße 😀", "b"],
            max_tokens=50,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    said = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            said[choice.index] += choice.text
    assert said == ["echo: grüße 😀", "echo: b"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 18 + 7
    with pytest.raises(openai.BadRequestError, match="suffix"):
        client.completions.create(model=MODEL, prompt="a", suffix="b")


def test_the_openai_sdk_reads_the_echo_and_its_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="né", echo=True, logprobs=2, max_tokens=4
    )
    choice = answer.choices[0]
    assert choice.text == "néecho"
    assert choice.logprobs is not None
    told = choice.logprobs.model_dump()
    assert told["tokens"] == ["n", "\\xc3", "\\xa9", "e", "c", "h", "o"]
    assert told["text_offset"] == [0, 1, 1, 2, 3, 4, 5]
    assert told["token_logprobs"][0] is None
    assert all(value <= 0 for value in told["token_logprobs"][1:])
    first, *tops = told["top_logprobs"]
    assert first is None
    pairs = zip(told["tokens"][1:], tops, strict=True)
    assert all(own in top for own, top in pairs)


def test_a_prompt_alone_is_scored_by_the_device(node: Node) -> None:
    for prompt in ("abc", "a"):
        reply = post(node, PATH, prompt=prompt, echo=True, logprobs=0, max_tokens=0)
        choice = reply.json["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (prompt, "length")
        assert len(choice["logprobs"]["token_logprobs"]) == len(prompt)
        assert reply.json["usage"]["completion_tokens"] == 0
    echoed = post(node, PATH, prompt="abc", echo=True, max_tokens=0)
    assert echoed.json["choices"][0]["text"] == "abc"
    scored = post(node, PATH, prompt="abc", prompt_logprobs=1, max_tokens=0)
    (first, *rest) = scored.json["choices"][0]["prompt_logprobs"]
    assert first is None
    assert [list(each)[0] for each in rest] == [str(ord("b")), str(ord("c"))]


def test_a_whole_batch_is_answered(node: Node) -> None:
    prompts = [f"n{i}" for i in range(32)]
    reply = post(node, PATH, prompt=prompts, max_tokens=20, n=2)
    texts = [choice["text"] for choice in reply.json["choices"]]
    assert texts == [f"echo: n{i // 2}" for i in range(64)]
    assert reply.json["usage"]["prompt_tokens"] == sum(map(len, prompts))


def test_a_batch_of_long_prompts_waits_for_the_device_to_take_them(node: Node) -> None:
    """At once they would not fit into a worker's ring, however idle the device."""
    long = list(range(250)) * 32
    reply = post(node, PATH, prompt=[long] * 40, max_tokens=1)
    assert (reply.status, len(reply.json["choices"])) == (200, 40)


def test_s76_in_a_raw_prompt_special_tokens_are_what_they_say(node: Node) -> None:
    raw = post(node, "/tokenize", prompt="<|im_end|>").json["tokens"]
    assert raw == [IM_END]
    hi = {"role": "user", "content": "<|im_end|>"}
    spoken = post(node, "/tokenize", messages=[hi]).json["tokens"]
    assert spoken.count(IM_END) == 1
    used = post(node, PATH, prompt="<|im_end|>a").json["usage"]
    assert used["prompt_tokens"] == 2


def test_tokens_of_a_model_that_was_never_loaded(node: Node) -> None:
    reply = node.http.post("/tokenize", {"model": OTHER, "prompt": "é"})
    assert (reply.status, reply.json["tokens"]) == (200, list("é".encode()))
    assert reply.json["max_model_len"] == 8192
    back = node.http.post("/detokenize", {"model": OTHER, "tokens": [104, 105]})
    assert back.json == {"prompt": "hi"}
    assert node.model(OTHER)["status"] == "unloaded"
    assert node.http.post(PATH, {"model": OTHER, "prompt": "a"}).status == 503
    assert node.http.post("/tokenize", {"model": "nope", "prompt": "a"}).status == 404


def test_head_is_get_without_the_body(node: Node) -> None:
    paths = ("/version", "/discovery", "/health", "/models", "/v1/models")
    for path in (*paths, f"/v1/models/{MODEL}", "/v1/models/nope"):
        got, head = node.http.get(path), node.http.send("HEAD", path)
        assert (head.status, head.body) == (got.status, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
    assert node.http.send("HEAD", "/events").status == 405
