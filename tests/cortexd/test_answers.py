"""Whole answers of nodes, good and bad."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cortexd.answers import checked
from cortexd.frames import Usage
from cortexd.nodes.http import Lost

ERROR = {"message": "no", "type": "invalid_request_error", "param": "n", "code": "x"}


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def test_an_answer_goes_through_and_its_tokens_are_read() -> None:
    details = {"cached_tokens": 4}
    usage = {"prompt_tokens": 9, "completion_tokens": 2}
    sent = body(id="c", usage={**usage, "prompt_tokens_details": details})

    answer = checked(200, sent, "", "req_1")

    assert answer.body is sent
    assert answer.usage == Usage(9, 2, 4)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens_details": None}])
def test_an_answer_may_lack_its_figures(usage: Any) -> None:
    answer = checked(200, body(usage=usage), "", "req_1")

    assert answer.usage in (None, Usage())


def test_an_error_of_a_node_keeps_all_but_the_request_id() -> None:
    sent = body(error={**ERROR, "request_id": "other", "max": 8})

    answer = checked(429, sent, "7", "req_1")

    assert (answer.status, answer.retry_after) == (429, "7")
    assert json.loads(answer.body) == {
        "error": {**ERROR, "max": 8, "request_id": "req_1"}
    }


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        (200, b"<html>"),
        (200, b"[1]"),
        (200, b"\xff"),
        (200, b"[" * 100_000),
        (500, b"Traceback (most recent call last)"),
        (500, body(detail="internal")),
        (500, body(error="bad")),
        (404, body(error={"message": "no"})),
        (401, body(error=ERROR)),
        (403, body(error=ERROR)),
        (302, b""),
        (204, b""),
    ],
)
def test_s41_what_is_no_answer_of_a_node_goes_no_further(
    status: int, sent: bytes
) -> None:
    with pytest.raises(Lost):
        checked(status, sent, "", "req_1")
