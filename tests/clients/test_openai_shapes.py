"""The official SDK reads log probabilities, forced calls and structured answers.

On a fake device, which says what the message tells it to: what is looked at here is the
way there and back, not the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from tests.harness import MODEL, Node


class Weather(pydantic.BaseModel):
    """How the weather is."""

    city: str
    degrees: int


ANSWER = '{"city": "Tromsø", "degrees": -3}'
CALL = f'{{"name": "weather", "arguments": {ANSWER}}}'
TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": Weather.model_json_schema()},
}
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Node(tmp_path_factory.mktemp("node")) as node:
        yield node


@pytest.fixture
def client(node: Node) -> openai.OpenAI:
    url = f"{node.http.url}/v1"
    return openai.OpenAI(base_url=url, api_key="placeholder", max_retries=0)


def saying(text: str) -> Any:
    content = f"[[fake text={json.dumps(text, ensure_ascii=False)}]]"
    return [{"role": "user", "content": content}]


def test_logprobs_of_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=saying("é x"), logprobs=True, top_logprobs=3
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    entries = choice.logprobs.content or []
    assert b"".join(bytes(e.bytes or []) for e in entries).decode() == "é x"
    assert all(-9999.0 <= entry.logprob <= 0 for entry in entries)
    assert [len(entry.top_logprobs) for entry in entries] == [3] * len(entries)
    assert entries[-1].token == entries[-1].top_logprobs[0].token == "x"


def test_logprobs_of_a_stream_are_those_of_the_whole_answer(
    client: openai.OpenAI,
) -> None:
    asked: Any = {"model": MODEL, "messages": saying("é x"), "logprobs": True}
    whole = client.chat.completions.create(**asked).choices[0].logprobs
    streamed: list[Any] = []
    for chunk in client.chat.completions.create(stream=True, **asked):
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content or []
    assert whole is not None
    assert streamed == whole.content


def test_a_pydantic_model_is_asked_for_and_parsed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=saying(ANSWER), response_format=Weather
    )
    assert answer.choices[0].message.parsed == Weather(city="Tromsø", degrees=-3)


def test_json_object_is_served(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=saying("{}"), response_format={"type": "json_object"}
    )
    assert answer.choices[0].message.content == "{}"


def test_a_schema_that_cannot_be_compiled_is_a_bad_request(
    client: openai.OpenAI,
) -> None:
    schema: Any = {"type": "object", "properties": {"a": {"type": "integr"}}}
    with pytest.raises(openai.BadRequestError, match="integr") as caught:
        client.chat.completions.create(
            model=MODEL,
            messages=saying("{}"),
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": schema, "strict": True},
            },
        )
    assert caught.value.type == "invalid_request_error"
    assert caught.value.param == "response_format.json_schema.schema"


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_forced_call_is_a_call(client: openai.OpenAI, choice: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=saying(CALL), tools=[TOOL], tool_choice=choice
    )
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.tool_calls is not None
    call: Any = message.tool_calls[0]
    assert Weather.model_validate_json(call.function.arguments).city == "Tromsø"
    # the same message goes back, with the function's result
    history: Any = [*saying("warm"), message, result_of(call.id)]
    again = client.chat.completions.create(
        model=MODEL, messages=history, tools=[TOOL], tool_choice="none"
    )
    assert again.choices[0].message.content == "warm"


def result_of(call: str) -> Any:
    return {"role": "tool", "tool_call_id": call, "content": "sunny"}


def test_the_sdks_own_accumulator_builds_the_call(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=saying(CALL), tools=[TOOL], tool_choice="required"
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls is not None
    call = final.message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("weather", ANSWER)


def test_a_free_choice_of_tools_is_a_bad_request_that_names_it(
    client: openai.OpenAI,
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=MODEL, messages=saying("x"), tools=[TOOL], tool_choice="auto"
        )
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "tools")


def test_s83_the_second_turn_of_a_chat_says_what_was_cached(
    client: openai.OpenAI,
) -> None:
    messages: Any = [{"role": "user", "content": "x" * 2000}]
    cached = []
    for _ in range(2):
        answer = client.chat.completions.create(model=MODEL, messages=messages)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    first, second = cached
    assert first is not None
    assert first < 100  # no more than the template's own beginning
    assert second is not None
    assert second > 1000


def test_who_brings_a_salt_shares_no_computed_prompt(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "y" * 1000}]
    cached = []
    for salt in ("a", "b", "a"):
        answer = client.chat.completions.create(
            model=MODEL, messages=messages, extra_body={"cache_salt": salt}
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached.append(answer.usage.prompt_tokens_details.cached_tokens or 0)
    assert cached[:2] == [0, 0]
    assert cached[2] > 900


def test_several_answers_share_one_prompt(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": saying("abc")}
    one = client.chat.completions.create(**asked).usage
    many = client.chat.completions.create(n=4, **asked)
    assert [choice.message.content for choice in many.choices] == ["abc"] * 4
    assert one is not None
    assert many.usage is not None
    assert many.usage.prompt_tokens == one.prompt_tokens
    assert many.usage.completion_tokens == 4 * one.completion_tokens
