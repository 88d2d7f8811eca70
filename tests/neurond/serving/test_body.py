"""Bodies: whole, small enough, valid; or refused with what is wrong and where."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import ClientError
from neurond.serving import body


def read(
    chunks: list[bytes], headers: Mapping[str, str] | None = None, *, whole: bool = True
) -> bytes:
    """What a reader makes of the server's events."""
    events = [
        {"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks
    ]
    ending = {"type": "http.request", "body": b"", "more_body": False}
    events.append(ending if whole else {"type": "http.disconnect"})
    stream = iter(events)

    async def receive() -> Mapping[str, Any]:
        return next(stream)

    async def run() -> bytes:
        reader = body.BodyReader(receive)
        await reader.receive()  # as the framework does
        return await reader.read(headers or {}, limit_bytes=100)

    return asyncio.run(run())


def refusal(data: bytes) -> ClientError:
    with pytest.raises(ClientError) as caught:
        body.parse(data)
    assert caught.value.status == 400
    return caught.value


def test_a_body_in_pieces_comes_out_whole() -> None:
    assert read([b"a", b"", b"bc"], {"content-length": "3"}) == b"abc"


def test_a_body_in_many_small_pieces_takes_no_more_memory_than_its_size() -> None:
    left = iter(range(200_000))

    async def receive() -> Mapping[str, Any]:
        more = next(left, None) is not None
        return {"type": "http.request", "body": bytes(2), "more_body": more}

    async def run() -> int:
        return len(await body.BodyReader(receive).read({}, limit_bytes=1 << 20))

    tracemalloc.start()
    try:
        size_bytes = asyncio.run(run())
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size_bytes == 400_002
    assert peak_bytes < 4 * size_bytes


def test_a_chunked_body_needs_no_announcement() -> None:
    assert read([b"abc"]) == b"abc"


@pytest.mark.parametrize("headers", [{}, {"content-length": "10"}])
def test_a_body_that_was_cut_off_is_never_returned(headers: dict[str, str]) -> None:
    with pytest.raises(ClientError, match="cut off") as caught:
        read([b'{"a": 1}'], headers, whole=False)
    assert caught.value.status == 400


@pytest.mark.parametrize("announced", ["2", "4"])
def test_a_length_that_differs_from_the_announced_one_is_refused(
    announced: str,
) -> None:
    with pytest.raises(ClientError, match="3 of"):
        read([b"abc"], {"content-length": announced})


@pytest.mark.parametrize(
    ("chunks", "headers"), [([b"x" * 60] * 2, {}), ([b""], {"content-length": "101"})]
)
def test_a_body_over_the_cap_is_413(
    chunks: list[bytes], headers: dict[str, str]
) -> None:
    with pytest.raises(ClientError) as caught:
        read(chunks, headers)
    assert (caught.value.code, caught.value.status) == ("request_too_large", 413)


@pytest.mark.parametrize("value", ["-1", "x", "1" * 30, "¹", ""])
def test_a_content_length_that_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(ClientError):
        read([b"a"], {"content-length": value})


@pytest.mark.parametrize(
    "kind",
    ["application/json", "Application/JSON; charset=utf-8", "application/problem+json"],
)
def test_json_types_are_accepted(kind: str) -> None:
    body.require_json({"content-type": kind})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "multipart/form-data; boundary=application/json"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_any_other_type_is_415(headers: dict[str, str]) -> None:
    with pytest.raises(ClientError) as caught:
        body.require_json(headers)
    assert caught.value.status == 415


@pytest.mark.parametrize(
    ("data", "line", "column"),
    [
        (b'{"a": 1,}', 1, 9),
        (b'{\n  "a": x\n}', 2, 8),
        (b'{"a": 1', 1, 8),
        (b'{"a": NaN}', 1, 7),
        (b'{"a": 1} x', 1, 10),
        (b'{\n"a": "\xff"}', 2, 7),
    ],
)
def test_malformed_json_is_refused_with_its_position(
    data: bytes, line: int, column: int
) -> None:
    error = refusal(data)
    assert error.code == "invalid_json"
    assert (error.fields["line"], error.fields["column"]) == (line, column)
    assert f"line {line}, column {column}" in error.message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" \n",
        b"[" * 100_000,
        b'{"a":' * 5000,
        b'{"a": 1e999}',
        b'{"a": ' + b"1" * 1_000_000 + b"}",
        b'{"a": "\\ud800"}',
        b'{"a": "\\udc00\\ud800 tail"}',
        b"\x00",
        b"\xef\xbb\xbf{",
    ],
)
def test_hostile_documents_are_refused_in_a_moment(data: bytes) -> None:
    started_s = time.monotonic()
    refusal(data)
    assert time.monotonic() - started_s < 0.2


@pytest.mark.parametrize("mark", [b"1,", b"[],", b'{"a":1},'])
def test_a_document_of_a_million_parts_is_refused_before_it_is_built(
    mark: bytes,
) -> None:
    started_s = time.monotonic()
    refusal(b"[" + mark * 1_000_000 + b"1]")
    assert time.monotonic() - started_s < 0.3


def test_a_long_text_is_no_structure() -> None:
    text = "word " * 1_000_000
    assert body.parse(json.dumps({"a": text}).encode()) == {"a": text}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON)
def test_every_document_comes_back_equal(document: Any) -> None:
    assert body.parse(json.dumps(document).encode()) == document


@given(st.binary())
def test_any_bytes_are_a_document_or_a_client_error(data: bytes) -> None:
    try:
        document = body.parse(data)
    except ClientError:
        return
    json.dumps(document, ensure_ascii=False).encode()  # no lone surrogate in it
