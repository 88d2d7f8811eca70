"""Log probabilities, shapes of answers and forced calls through a worker."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from ipc.messages import Accepted, Finished, Submit
from neurond.device import fakemodel
from tests.neurond.frontend.stage import Stage, on_stage, until
from tests.neurond.frontend.test_chat import text_of
from tests.neurond.serving.asgi import frames

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
TOOLS = [
    {"type": "function", "function": {"name": "now"}},
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
]
NAMED = {"type": "function", "function": {"name": "weather"}}
CALL = '{"name": "weather", "arguments": {"a": 5}}'


def saying(text: str) -> str:
    """A message that the fake answers with `text`."""
    return f"[[fake text={json.dumps(text)}]]"


def submitted(stage: Stage) -> list[Submit]:
    assert stage.device is not None
    return [message for message in stage.device.got if isinstance(message, Submit)]


def test_logprobs_of_a_whole_answer_spell_it(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        answer = await stage.chat("größe 😀", logprobs=True, top_logprobs=2)
        choice = ChatCompletion.model_validate(answer.json).choices[0]
        assert choice.logprobs is not None
        entries = choice.logprobs.content or []
        spelt = b"".join(bytes(entry.bytes or []) for entry in entries)
        assert spelt.decode() == choice.message.content == "echo: größe 😀"
        assert {entry.logprob for entry in entries} == {-0.5}
        assert [top.logprob for top in entries[0].top_logprobs] == [-0.5, -9999.0]
        assert entries[0].top_logprobs[1].token == "\n"
        plain = (await stage.chat("hi")).json["choices"][0]
        assert plain["logprobs"] is None

    on_stage(tmp_path, play)


def test_s07_logprobs_of_a_stream_come_with_the_text_that_they_spell(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        answer = await stage.chat("é😀 x", stream=True, logprobs=True, stop=["😀 y"])
        chunks = [
            ChatCompletionChunk.model_validate(chunk, strict=True)
            for chunk in frames(answer.body)[:-1]
        ]
        spelt = shown = b""
        for chunk in chunks:
            choice = chunk.choices[0]
            shown += (choice.delta.content or "").encode()
            if choice.logprobs is not None:
                entries = choice.logprobs.content or []
                assert all(entry.top_logprobs == [] for entry in entries)
                spelt += b"".join(bytes(entry.bytes or []) for entry in entries)
            assert spelt == shown
        assert shown.decode() == "echo: é😀 x"

    on_stage(tmp_path, play)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": FORMAT}, {"json_schema": SCHEMA}),
        ({"guided_regex": "[ab]+"}, {"regex": "[ab]+"}),
        ({"guided_choice": ["yes", "no"]}, {"lark": 'start: "yes" | "no"'}),
        ({"structured_outputs": {"grammar": 'start: "x"'}}, {"lark": 'start: "x"'}),
    ],
)
def test_a_shape_reaches_the_device_as_a_grammar(
    tmp_path: Path, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    async def play(stage: Stage) -> None:
        assert (await stage.chat("hi", **fields)).status == 200
        assert json.loads(submitted(stage)[0].grammar) == expected

    on_stage(tmp_path, play)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        (
            {"response_format": {**FORMAT, "json_schema": {"schema": {"type": "int"}}}},
            "response_format.json_schema.schema",
            "int",
        ),
        ({"guided_regex": "(a"}, "guided_regex", "unclosed group"),
        ({"guided_regex": "a", "guided_json": SCHEMA}, "guided_regex", "exclude"),
        ({"guided_regex": "a", "tools": TOOLS, "tool_choice": NAMED}, None, "exclude"),
        (
            {
                "tools": [
                    {**NAMED, "function": {"name": "f", "parameters": {"$ref": 5}}}
                ],
                "tool_choice": "required",
            },
            "tools",
            "",
        ),
        (
            {"tools": TOOLS, "tool_choice": NAMED, "ignore_eos": True},
            "ignore_eos",
            "exclude",
        ),
        ({"tools": TOOLS}, "tools", "auto"),
        ({"tools": TOOLS, "tool_choice": {"type": "x"}}, "tool_choice", ""),
        ({"top_logprobs": 5}, "top_logprobs", ""),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"stop_token_ids": [258]}, "stop_token_ids", "258"),
        ({"typical_p": 1.5}, "typical_p", ""),
        ({"n": 17}, "n", "16"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_before_the_device_hears_of_it(
    tmp_path: Path, fields: dict[str, Any], param: str | None, words: str
) -> None:
    async def play(stage: Stage) -> None:
        for stream in (False, True):
            answer = await stage.chat("hi", stream=stream, **fields)
            error = answer.json["error"]
            assert (answer.status, error["type"]) == (400, "invalid_request_error")
            assert param is None or error["param"] == param
            assert words in error["message"]
        assert submitted(stage) == []

    on_stage(tmp_path, play)


def test_a_forced_call_is_answered_as_a_call(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        asked = {"tools": TOOLS, "tool_choice": NAMED, "parallel_tool_calls": False}
        whole = (await stage.chat(saying(CALL), **asked)).json
        choice = ChatCompletion.model_validate(whole).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        assert choice.message.tool_calls is not None
        function = choice.message.tool_calls[0].function  # type: ignore[union-attr]
        assert (function.name, function.arguments) == ("weather", '{"a": 5}')
        (grammar,) = [json.loads(m.grammar) for m in submitted(stage)]
        assert "weather" in grammar["lark"]
        assert "now" not in grammar["lark"]

    on_stage(tmp_path, play)


def test_a_forced_call_streams_its_name_then_its_arguments(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        asked = {"tools": TOOLS, "tool_choice": "required", "stream": True, "n": 2}
        options = {"include_usage": True}
        answer = await stage.chat(saying(CALL), stream_options=options, **asked)
        chunks = frames(answer.body)
        assert chunks[-1] == "[DONE]"
        assert chunks[-2]["usage"]["completion_tokens"] == 2 * len(CALL)
        ids = []
        for index in range(2):
            mine = [
                c["choices"][0]
                for c in chunks[:-2]
                if c["choices"][0]["index"] == index
            ]
            role, *calls, end = mine
            assert role["delta"] == {"role": "assistant", "content": None}
            deltas = [call["delta"]["tool_calls"][0] for call in calls]
            assert (deltas[0]["index"], deltas[0]["type"]) == (0, "function")
            assert deltas[0]["function"]["name"] == "weather"
            ids.append(deltas[0]["id"])
            arguments = "".join(d["function"]["arguments"] for d in deltas)
            assert arguments == '{"a": 5}'
            assert end["finish_reason"] == "tool_calls"
        assert len(set(ids)) == 2

    on_stage(tmp_path, play)


def test_tools_that_are_not_to_be_called_are_not_offered(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        for choice in ("none", None):
            tools = TOOLS if choice else []
            answer = await stage.chat("hi", tools=tools, tool_choice=choice)
            assert answer.json["choices"][0]["message"]["content"] == "echo: hi"
        assert [m.grammar for m in submitted(stage)] == ["", ""]

    on_stage(tmp_path, play)


@pytest.mark.parametrize("takes_tools", [True, False])
def test_tools_are_in_the_prompt_of_a_template_that_takes_them(
    tmp_path: Path, takes_tools: bool
) -> None:
    source = fakemodel.TEMPLATE
    if takes_tools:
        source = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}" + source
    folder = fakemodel.build(tmp_path / "other")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = source
    (folder / "tokenizer_config.json").write_text(json.dumps(config))

    async def play(stage: Stage) -> None:
        await stage.publish(folder=str(folder))
        await stage.chat(saying(CALL), tools=TOOLS, tool_choice=NAMED)
        prompt = bytes(i for i in submitted(stage)[0].ids if i < 256).decode()
        assert (json.dumps(TOOLS[1]) in prompt) == takes_tools
        assert submitted(stage)[0].grammar

    on_stage(tmp_path, play)


def test_response_format_beside_a_forced_call_is_about_content_it_has_none_of(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        asked = {"tools": TOOLS, "tool_choice": NAMED, "response_format": FORMAT}
        answer = await stage.chat(saying(CALL), **asked)
        assert answer.json["choices"][0]["finish_reason"] == "tool_calls"
        assert "weather" in json.loads(submitted(stage)[0].grammar)["lark"]

    on_stage(tmp_path, play)


def test_every_sampling_field_reaches_the_device(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        given = {
            "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1,
            "typical_p": 0.8, "repetition_penalty": 1.1, "presence_penalty": 0.2,
            "frequency_penalty": 0.3, "min_tokens": 2, "ignore_eos": True,
        }  # fmt: skip
        more = {"stop_token_ids": [65], "logit_bias": {"66": 5}, "seed": 9}
        await stage.chat("hi", logprobs=True, top_logprobs=3, **given, **more)
        (submit,) = submitted(stage)
        assert {name: getattr(submit.sampling, name) for name in given} == given
        assert (submit.sampling.logprobs, submit.sampling.logit_bias) == (
            3,
            ((66, 5.0),),
        )
        assert (submit.stop_ids, submit.seed) == ((65,), 9)

    on_stage(tmp_path, play)


def test_s83_cached_tokens_are_in_both_usages_and_count_the_prompt_once(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        device = stage.device
        assert device is not None

        def answer(submit: Submit) -> None:
            cached = 4 if submit.choice == 0 else len(submit.ids)
            device.end.send(Accepted(submit.id, 0, cached))
            device.end.send(Finished(submit.id, "stop", len(submit.ids), 0, cached))

        device.on_submit = answer
        whole = (await stage.chat("hi", n=3)).json["usage"]
        assert whole["prompt_tokens"] == len(submitted(stage)[0].ids)
        assert whole["prompt_tokens_details"] == {"cached_tokens": 4}
        options = {"include_usage": True}
        body = (await stage.chat("hi", stream=True, stream_options=options)).body
        usage = frames(body)[-2]["usage"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": 4}

    on_stage(tmp_path, play)


def test_s22_answers_that_have_no_room_together_are_refused_before_any_is_sent(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        device = stage.device
        assert device is not None
        device.on_submit = lambda submit: device.begin(submit, "a")
        busy = asyncio.ensure_future(stage.chat("hi", n=6))
        await until(lambda: len(submitted(stage)) == 6)
        answer = await stage.chat("hi", n=3)
        assert (answer.status, answer.json["error"]["code"]) == (429, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        device.on_submit = device.answer
        assert (await stage.chat("hi")).status == 200
        assert len(submitted(stage)) == 7
        busy.cancel()

    on_stage(tmp_path, play)


def test_s23_a_client_that_leaves_the_queue_frees_its_place_at_once(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        device = stage.device
        assert device is not None

        def put_in_queue(submit: Submit) -> None:
            device.end.send(Accepted(submit.id, 3, 0))

        device.on_submit = put_in_queue
        waiting = [
            asyncio.ensure_future(stage.chat("hi", stream=True)) for _ in range(8)
        ]
        await until(lambda: len(submitted(stage)) == 8)
        full = await stage.chat("hi")
        assert (full.status, full.json["error"]["code"]) == (429, "queue_full")
        assert int(full.headers["retry-after"]) >= 1
        waiting.pop().cancel()
        await until(lambda: len(device.cancelled) == 1)
        device.on_submit = device.answer
        assert (await stage.chat("hi")).status == 200
        for client in waiting:
            client.cancel()
        await until(lambda: len(device.cancelled) == 8)
        whole = frames((await stage.chat("hi", stream=True, n=8)).body)
        assert text_of(whole) == "echo: hi"

    on_stage(tmp_path, play)
