"""Messages of all clients come out in one shape; what can't be shown is refused."""

from __future__ import annotations

from typing import Any

import pytest

from ipc.errors import ClientError
from neurond.serving.messages import parse_messages


def one(**message: Any) -> dict[str, Any]:
    return parse_messages([{"role": "user", **message}])[0]


def refusal(value: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        parse_messages(value)
    return caught.value


def test_s64_null_content_is_empty_text() -> None:
    assert one(role="assistant", content=None)["content"] == ""
    assert one(role="assistant")["content"] == ""


def test_text_parts_are_joined_by_newlines() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert one(content=parts)["content"] == "a\nb"
    assert one(content=[])["content"] == ""


@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}])
def test_s64_tool_arguments_are_an_object_whatever_the_client_sent(
    arguments: Any,
) -> None:
    call = {"id": "c1", "function": {"name": "f", "arguments": arguments}}
    message = one(role="assistant", content=None, tool_calls=[call])
    assert message["tool_calls"][0]["function"]["arguments"] == {"a": 1}


@pytest.mark.parametrize("arguments", ["{", '"\\ud800"', "[" * 100_000])
def test_broken_tool_arguments_are_shown_as_the_model_wrote_them(
    arguments: str,
) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    message = one(role="assistant", tool_calls=[call])
    assert message["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize("kind", ["image_url", "image", "input_image"])
def test_s71_an_image_is_refused_never_dropped(kind: str) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": kind, "image_url": {"url": "x"}}]
    error = refusal([{"role": "user", "content": parts}])
    assert (error.code, error.status) == ("vision_unsupported", 400)
    assert error.param == "messages[0].content[1].type"


@pytest.mark.parametrize(
    ("role", "expected"), [("developer", "system"), ("function", "tool")]
)
def test_roles_that_templates_do_not_know_get_their_older_name(
    role: str, expected: str
) -> None:
    assert one(role=role, content="x")["role"] == expected


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ({}, "messages"),
        ("hi", "messages"),
        ([None], "messages[0]"),
        (["hi"], "messages[0]"),
        ([{}], "messages[0].role"),
        ([{"role": 5}], "messages[0].role"),
        ([{"role": "wizard"}], "messages[0].role"),
        ([{"role": ["user"]}], "messages[0].role"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": {"type": "text"}}], "messages[0].content"),
        ([{"role": "user", "content": [5]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{}]}], "messages[0].content[0].type"),
        (
            [{"role": "user", "content": [{"type": {}}]}],
            "messages[0].content[0].type",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": None}]}],
            "messages[0].content[0].text",
        ),
        ([{"role": "user", "name": 1}], "messages[0].name"),
        ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [1]}], "messages[0].tool_calls[0]"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {}}]}],
            "messages[0].tool_calls[0].function.name",
        ),
        (
            [
                {
                    "role": "user",
                    "tool_calls": [{"function": {"name": "f", "arguments": 5}}],
                }
            ],
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_a_bad_message_is_refused_with_its_path(value: Any, param: str) -> None:
    error = refusal(value)
    assert (error.status, error.param) == (400, param)


def test_ten_thousand_messages_are_served_and_one_more_is_not() -> None:
    message = {"role": "user", "content": "x"}
    assert len(parse_messages([message] * 10_000)) == 10_000
    assert refusal([message] * 10_001).param == "messages"
