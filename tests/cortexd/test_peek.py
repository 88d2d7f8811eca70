"""What is read of a body, and how little of it is changed."""

from __future__ import annotations

import json

import pytest

from cortexd.peek import peek
from ipc.errors import ClientError


@pytest.mark.parametrize(
    ("body", "model", "stream"),
    [
        (b'{"model":"m"}', "m", False),
        (b'{"model":"m","stream":null}', "m", False),
        (b'{"model":"m","stream":true,"x":[1,{"model":"n"}]}', "m", True),
        ('{"model":"modèle"}'.encode(), "modèle", False),
    ],
)
def test_model_and_stream_are_read(body: bytes, model: str, stream: bool) -> None:
    seen = peek(body)

    assert (seen.model, seen.stream) == (model, stream)


def test_the_body_goes_on_byte_for_byte() -> None:
    body = b' {"model" : "m", "n": 1.50,\n "x": "\\u00e9" } '

    assert peek(body).body_for("m") is body


def test_only_an_alias_is_replaced() -> None:
    body = b'{"stream":true,"model":"gpt-4o","n":1.50,"x":{"model":"gpt-4o"}}'

    changed = peek(body).body_for("m")

    assert changed == b'{"stream":true,"model":"m","n":1.50,"x":{"model":"gpt-4o"}}'


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b'{"model":"m",}', "invalid_json", "line 1, column 14"),
        (b"", "invalid_json", "empty"),
        (b'{"model":"m"', "invalid_json", "malformed JSON"),
        (b'{"model":"\xff"}', "invalid_json", "UTF-8"),
        (b"[" * 100_000, "invalid_json", ""),
        (b"[]", "invalid_request_error", "must be a JSON object"),
        (b"{}", "invalid_request_error", "model: a name is required"),
        (b'{"model":7}', "invalid_request_error", "model: a name is required"),
        (b'{"model":""}', "invalid_request_error", "1 to 256 characters"),
        (b'{"model":"m","stream":"yes"}', "invalid_request_error", "stream must be"),
    ],
)
def test_a_bad_body_is_the_clients_mistake_and_named(
    body: bytes, code: str, words: str
) -> None:
    with pytest.raises(ClientError) as caught:
        peek(body)

    assert caught.value.code == code
    assert words in caught.value.message


def test_an_endless_name_is_refused() -> None:
    with pytest.raises(ClientError):
        peek(json.dumps({"model": "m" * 257}).encode())
