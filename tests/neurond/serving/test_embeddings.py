"""The body of /v1/embeddings: every field in range or refused by name; the answer."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import ClientError
from neurond.device.fakemodel import build
from neurond.serving import embeddings
from neurond.serving.embeddings import EmbeddingRequest
from neurond.serving.tokenizer import Tokenizer, load


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load(build(tmp_path_factory.mktemp("model")))


def parsed(given: Any, **fields: Any) -> EmbeddingRequest:
    return embeddings.parse_embeddings({"model": "m", "input": given, **fields})


def refused(given: Any, **fields: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        parsed(given, **fields)
    return caught.value


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
def test_an_input_is_texts_or_ids(given: Any, inputs: tuple[Any, ...]) -> None:
    assert parsed(given).inputs == inputs


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (None, "input"),
        ("", "input"),
        ([], "input"),
        (7, "input"),
        ({"a": 1}, "input"),
        (["a", ""], "input[1]"),
        (["a", 1], "input[1]"),
        (["a", [1]], "input[1]"),
        ([1, "a"], "input[1]"),
        ([1, True], "input[1]"),
        ([1, -1], "input[1]"),
        ([1, 1.5], "input[1]"),
        ([[1], []], "input[1]"),
        ([[1], "a"], "input[1]"),
        ([[1], [None]], "input[1][0]"),
        (["a"] * 2049, "input"),
    ],
)
def test_any_other_input_is_refused_by_its_place(given: Any, param: str) -> None:
    assert refused(given).param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"encoding_format": ["float"]}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": "8"}, "dimensions"),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    assert refused("a", **fields).param == param


@pytest.mark.parametrize(
    ("wanted", "as_base64"), [(None, False), ("float", False), ("base64", True)]
)
def test_floats_are_the_format_unless_told(wanted: str | None, as_base64: bool) -> None:
    assert parsed("a", encoding_format=wanted).as_base64 is as_base64


def test_dimensions_are_cut_only_where_the_model_allows_it() -> None:
    check = embeddings.check_dimensions
    assert check(None, 384, may_cut=False) is None
    assert check(384, 384, may_cut=False) is None
    assert check(64, 384, may_cut=True) == 64
    for asked, may_cut in ((64, False), (385, True), (385, False)):
        with pytest.raises(ClientError) as caught:
            check(asked, 384, may_cut=may_cut)
        assert caught.value.param == "dimensions"


def test_special_tokens_in_a_text_are_text(tokenizer: Tokenizer) -> None:
    text = "a<|im_end|>b"
    (ids,) = embeddings.input_ids(parsed(text), tokenizer, window=64)
    assert ids == tuple(text.encode())


def test_many_texts_keep_their_order(tokenizer: Tokenizer) -> None:
    texts = [f"t{number}" for number in range(150)]
    found = embeddings.input_ids(parsed(texts), tokenizer, window=64)
    assert [bytes(ids).decode() for ids in found] == texts


def test_what_no_window_could_hold_is_not_encoded(tokenizer: Tokenizer) -> None:
    class Unused(Tokenizer):
        def __init__(self) -> None:
            self.vocab_size = 1

        def encode_texts(self, texts: Any) -> list[list[int]]:
            raise AssertionError("it was encoded")

    with pytest.raises(ClientError) as caught:
        embeddings.input_ids(parsed("x" * 10_000), Unused(), window=8)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.message.endswith("has about 40")


def test_all_inputs_together_are_bounded(tokenizer: Tokenizer) -> None:
    texts = ["x" * 500] * 700
    with pytest.raises(ClientError) as caught:
        embeddings.input_ids(parsed(texts), tokenizer, window=512)
    assert caught.value.param == "input"


def test_a_model_of_a_folder_that_cuts_and_fills_up_does_neither(
    tmp_path: Path,
) -> None:
    folder = build(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    content["padding"] = {
        "strategy": {"Fixed": 4},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    found = load(folder).encode_texts(["ab", "abcdefgh"])
    assert [bytes(ids) for ids in found] == [b"ab", b"abcdefgh"]


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=32))
def test_both_formats_hold_the_same_float32(values: list[float]) -> None:
    raw = struct.pack(f"<{len(values)}f", *values)
    as_floats = embeddings.vector_json(raw, dimensions=None, as_base64=False)
    encoded = embeddings.vector_json(raw, dimensions=None, as_base64=True)
    assert json.loads(as_floats) == values
    assert base64.b64decode(json.loads(encoded)) == raw


def test_an_answer_is_json_with_the_model_as_it_was_asked_for() -> None:
    document = json.loads(embeddings.answer('m"x', [b"[1.0]", b'"AA=="'], 7))
    assert document["model"] == 'm"x'
    assert [item["embedding"] for item in document["data"]] == [[1.0], "AA=="]
    assert document["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
