"""Frames and answers as the openai SDK's own types read them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from ipc.errors import error_for
from neurond.serving import openai
from neurond.serving.choice import Shown
from neurond.serving.generation import Usage
from neurond.serving.logprobs import Score

ENVELOPE = openai.new_envelope('m/"x"', 1700000000.9)
USAGE = Usage(prompt=5, completion=3, cached=2)


def whole(text: str, finish: str) -> openai.Answer:
    return openai.text_answer(Shown(text, []), finish, scored=False)


def event(frame: bytes) -> Any:
    assert frame.startswith(b"data: ")
    assert frame.endswith(b"}\n\n")
    assert frame.count(b"\n") == 2
    return json.loads(frame[6:])


def test_chunks_are_what_the_sdk_expects() -> None:
    frames = openai.ChunkFrames(ENVELOPE, include_usage=False)
    role = ChatCompletionChunk.model_validate(event(frames.begin(1)), strict=True)
    assert (role.choices[0].index, role.choices[0].delta.role) == (1, "assistant")
    text = ChatCompletionChunk.model_validate(
        event(frames.shown(0, Shown('é"\n😀', [])))
    )
    assert text.choices[0].delta.content == 'é"\n😀'
    end = ChatCompletionChunk.model_validate(event(frames.finish(0, "length")))
    assert end.choices[0].finish_reason == "length"
    assert role.id == text.id == end.id == ENVELOPE.id
    assert (role.model, role.created) == (ENVELOPE.model, 1700000000)
    assert "usage" not in event(frames.begin(0))


def test_with_usage_every_chunk_has_it_and_the_last_has_no_choices() -> None:
    frames = openai.ChunkFrames(ENVELOPE, include_usage=True)
    assert event(frames.shown(0, Shown("x", [])))["usage"] is None
    last = ChatCompletionChunk.model_validate(event(frames.usage(USAGE)))
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 8
    assert last.usage.prompt_tokens_details is not None
    assert last.usage.prompt_tokens_details.cached_tokens == 2


def test_a_whole_answer_is_what_the_sdk_expects() -> None:
    answers = [whole("a", "stop"), whole("", "length")]
    body = openai.completion(ENVELOPE, answers, USAGE)
    answer = ChatCompletion.model_validate(json.loads(body))
    assert [c.message.content for c in answer.choices] == ["a", ""]
    assert [c.finish_reason for c in answer.choices] == ["stop", "length"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


CALL = '{"name": "f", "arguments": {"a": "é"}}'


def deltas(pieces: list[str], reason: str) -> list[Any]:
    """What the SDK reads of a stream of a forced call."""
    chunks = openai.ChunkFrames(ENVELOPE, include_usage=False)
    frames = openai.CallFrames(chunks, ENVELOPE.id)
    parts = [frames.begin(0), *[frames.shown(0, Shown(p, [])) for p in pieces]]
    data = b"".join([*parts, frames.finish(0, reason)])
    events = [event(part + b"\n\n") for part in data.split(b"\n\n") if part]
    return [
        ChatCompletionChunk.model_validate(e, strict=True).choices[0] for e in events
    ]


def test_a_forced_call_streams_its_name_first_and_its_arguments_as_they_come() -> None:
    role, *calls, end = deltas(list(CALL), "stop")
    assert (role.delta.role, role.delta.content) == ("assistant", None)
    first = calls[0].delta.tool_calls[0]
    assert (first.index, first.type, first.function.name) == (0, "function", "f")
    assert first.id.startswith("call_")
    later = [choice.delta.tool_calls[0] for choice in calls[1:]]
    assert {(call.index, call.id, call.function.name) for call in later} == {
        (0, None, None)
    }
    pieces = [choice.delta.tool_calls[0].function.arguments for choice in calls]
    assert json.loads("".join(pieces)) == {"a": "é"}
    assert end.finish_reason == "tool_calls"


def test_a_whole_forced_call_is_what_its_stream_says() -> None:
    answer = openai.call_answer(ENVELOPE.id, 0, Shown(CALL, []), "stop", scored=False)
    body = openai.completion(ENVELOPE, [answer], USAGE)
    choice = ChatCompletion.model_validate(json.loads(body)).choices[0]
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    assert choice.message.tool_calls is not None
    call: Any = choice.message.tool_calls[0]
    streamed = deltas([CALL], "stop")[1].delta.tool_calls[0]
    assert (call.id, call.function.name) == (streamed.id, streamed.function.name)
    assert call.function.arguments == streamed.function.arguments


@pytest.mark.parametrize("cut", [len(CALL) - 2, 30])
def test_a_call_that_the_limit_cuts_off_says_length(cut: int) -> None:
    answer = openai.call_answer("x", 0, Shown(CALL[:cut], []), "length", scored=False)
    assert answer.finish == deltas([CALL[:cut]], "length")[-1].finish_reason == "length"
    assert answer.message["tool_calls"][0]["function"]["name"] == "f"


def test_text_that_is_no_call_is_content_and_not_lost() -> None:
    answer = openai.call_answer("x", 0, Shown("hello", []), "stop", scored=False)
    assert (answer.message["content"], answer.finish) == ("hello", "stop")
    assert "tool_calls" not in answer.message
    content = [choice.delta.content for choice in deltas(["hel", "lo"], "stop")]
    assert content == [None, "hello", None]


def test_scores_go_with_the_text_and_with_a_call() -> None:
    scores = [Score(b"a", -0.5, ((b"b", -0.7),))]
    chunks = openai.ChunkFrames(ENVELOPE, include_usage=False)
    calls = openai.CallFrames(chunks, ENVELOPE.id)
    for frame in (
        chunks.shown(0, Shown("a", scores)),
        calls.shown(0, Shown("{", scores)),
    ):
        choice = ChatCompletionChunk.model_validate(event(frame), strict=True).choices[
            0
        ]
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        entry = choice.logprobs.content[0]
        assert (entry.token, entry.top_logprobs[0].logprob) == ("a", -0.7)
    assert calls.shown(0, Shown('"name"', [])) == b""


def test_logprobs_of_an_empty_answer_are_an_empty_list() -> None:
    answers = [
        openai.text_answer(Shown("", []), "stop", scored=s) for s in (True, False)
    ]
    body = json.loads(openai.completion(ENVELOPE, answers, USAGE))
    asked, not_asked = [choice["logprobs"] for choice in body["choices"]]
    assert (asked["content"], not_asked) == ([], None)


def test_the_usage_comment_is_no_event() -> None:
    comment = openai.usage_comment(USAGE, "stop")
    assert comment.startswith(b": usage {")
    figures = json.loads(comment[8:])
    assert figures == {
        "prompt_tokens": 5, "completion_tokens": 3, "cached_tokens": 2, "finish": "stop"
    }  # fmt: skip


def test_an_error_event_carries_the_error_and_the_requests_id() -> None:
    error = event(openai.error_event(error_for("device_fault", "died"), "req_1"))
    assert error["error"]["code"] == "device_fault"
    assert error["error"]["request_id"] == "req_1"
    assert error["error"]["retry_after"] == 1


def test_each_stream_has_an_id_of_its_own() -> None:
    assert openai.new_envelope("m", 1).id != openai.new_envelope("m", 1).id
