"""Frames and answers as the openai SDK's own types read them."""

from __future__ import annotations

import json
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk

from ipc.errors import error_for
from neurond.serving import openai
from neurond.serving.choice import Shown
from neurond.serving.generation import Usage

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
