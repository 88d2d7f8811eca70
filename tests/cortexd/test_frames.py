"""The relay's frame splitter against every way a stream can be cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cortexd import frames
from cortexd.frames import Frames, FrameTooLarge

USAGE = b': usage {"prompt_tokens":7,"completion_tokens":3,"cached_tokens":2}\n\n'
DONE = b"data: [DONE]\n\n"


def chunk(**delta: object) -> bytes:
    body = {"id": "c", "choices": [{"index": 0, "delta": delta}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


FRAMES = st.one_of(
    st.text(max_size=12).map(lambda text: chunk(content=text)),
    st.sampled_from(
        [
            chunk(role="assistant", content=""),
            chunk(content="data: [DONE]\n\n: usage "),
            b": keep-alive\n\n",
            b"data: a\ndata: b\n\n",
            b"event: x\r\ndata: windows\r\n\r\n",
            b"\n\n",
            b"\r\n\r\n",
            DONE,
        ]
    ),
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *[cut % (len(data) + 1) for cut in cuts]})
    return [data[a:b] for a, b in zip(places, places[1:], strict=False)]


@given(
    st.lists(FRAMES, max_size=8),
    st.binary(max_size=20),
    st.lists(st.integers(0, 4000), max_size=40),
)
@example([b"\n\n", chunk(content="x")], b"data: {", [1, 2, 3])
@example([b"data: windows\r\n\r\n"], b"", [13, 14, 15, 16])
def test_any_chunking_gives_the_same_bytes_back(
    whole: list[bytes], tail: bytes, cuts: list[int]
) -> None:
    stream = b"".join(whole) + tail
    splitter = Frames()

    out = b"".join([splitter.feed(piece) for piece in pieces(stream, cuts)])

    assert out + splitter.rest() == stream


@given(st.lists(st.booleans(), max_size=10), st.lists(st.integers(0, 4000)))
def test_the_usage_comment_is_taken_out_and_nothing_else(
    is_usage: list[bool], cuts: list[int]
) -> None:
    texts = [chunk(content=f"w{i}") for i in range(len(is_usage))]
    parts = [USAGE if u else t for u, t in zip(is_usage, texts, strict=True)]
    wanted = b"".join([t for u, t in zip(is_usage, texts, strict=True) if not u])
    splitter = Frames()

    out = b"".join([splitter.feed(p) for p in pieces(b"".join(parts), cuts)])

    assert out + splitter.rest() == wanted
    assert (splitter.usage is not None) == any(is_usage)


@given(st.lists(FRAMES, min_size=1, max_size=6), st.lists(st.integers(0, 4000)))
def test_nothing_leaves_before_its_frame_is_whole(
    whole: list[bytes], cuts: list[int]
) -> None:
    splitter = Frames()

    for piece in pieces(b"".join(whole), cuts):
        out = splitter.feed(piece)
        assert not out or out.endswith((b"\n\n", b"\n\r\n"))
    assert not splitter.rest().strip(b"\r\n"), "a whole frame was held back"


def test_the_usage_is_read() -> None:
    splitter = Frames()

    assert splitter.feed(chunk(content="a") + USAGE + DONE).count(b"\n\n") == 2

    usage = splitter.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (
        *(7, 3),
        2,
    )


@pytest.mark.parametrize("comment", [b": usage {nonsense}\n\n", b": usage \xff\n\n"])
def test_a_usage_that_cannot_be_read_is_taken_out_all_the_same(comment: bytes) -> None:
    splitter = Frames()

    assert splitter.feed(comment + DONE) == DONE
    assert splitter.usage is None


@pytest.mark.parametrize(
    ("stream", "terminal"),
    [
        (chunk(content="hi"), ""),
        (chunk(content="data: [DONE]"), ""),
        (chunk(content='\n\ndata: {"error": 1}'), ""),
        (DONE, "done"),
        (b"data:[DONE]\n\n", "done"),
        (chunk(content="hi") + USAGE + DONE, "done"),
        (b'data: {"error":{"message":"x"}}\n\n', "error"),
        (chunk(content="hi") + b'data: {"error":{"message":"x"}}\n\n', "error"),
        (b": comment\ndata: [DONE]\n\n", "done"),
        (b"data: [DONE]", ""),
    ],
)
def test_the_end_is_known_by_its_frame_alone(stream: bytes, terminal: str) -> None:
    splitter = Frames()

    splitter.feed(stream)

    assert splitter.terminal == terminal


@pytest.mark.parametrize(
    ("frame", "has_token"),
    [
        (chunk(role="assistant", content=""), False),
        (chunk(content=None), False),
        (chunk(content="a"), True),
        (chunk(reasoning_content="a"), True),
        (chunk(tool_calls=[{"index": 0}]), True),
        (b'data: {"choices":[{"text":"a"}]}\n\n', True),
        (b'data: {"choices":[{"text":""}]}\n\n', False),
        (b": keep-alive\n\n", False),
        (b"data: nonsense\n\n", False),
        (b"data: \xff\n\n", False),
    ],
)
def test_the_first_token_is_the_first_output(frame: bytes, has_token: bool) -> None:
    splitter = Frames()

    splitter.feed(frame)

    assert splitter.has_token is has_token


def test_a_frame_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 100)
    splitter = Frames()
    splitter.feed(b"data: " + b"x" * 94)

    with pytest.raises(FrameTooLarge):
        splitter.feed(b"x")
