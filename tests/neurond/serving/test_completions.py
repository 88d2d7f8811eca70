"""The text completions body: prompts of every form, the dialect's own fields."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import ClientError
from neurond.device import fakemodel
from neurond.serving.completions import (
    MAX_SCORES,
    MAX_SEQUENCES,
    MAX_STREAMED_SCORES,
    encoded,
    parse_completion,
)
from neurond.serving.library import ServedModel, read_model
from tests.neurond.serving import folders


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return read_model(fakemodel.build(tmp_path_factory.mktemp("m") / "m"))


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": "hi", **fields}


def ids_of(served: ServedModel, prompt: Any, window: int = 99) -> list[tuple[int, ...]]:
    return encoded(parse_completion(body(prompt=prompt)), served, window)


def refusal(**fields: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        parse_completion(body(**fields))
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("hi", [(104, 105)]),
        (["h", "i"], [(104,), (105,)]),
        ([104, 105], [(104, 105)]),
        ([[104], [105, 256]], [(104,), (105, 256)]),
        (["h", [105]], [(104,), (105,)]),
        ("<|im_end|>", [(257,)]),
    ],
)
def test_every_form_of_a_prompt_becomes_ids(
    served: ServedModel, prompt: Any, ids: list[tuple[int, ...]]
) -> None:
    assert ids_of(served, prompt) == ids


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        ([], "prompt"),
        (7, "prompt"),
        ({}, "prompt"),
        ([[]], "prompt[0]"),
        (["a", 7], "prompt[1]"),
        ([1, "a"], "prompt[1]"),
        ([1, -1], "prompt[1]"),
        ([1, True], "prompt[1]"),
        ([[1], [1.5]], "prompt[1][0]"),
        (["a"] * (MAX_SEQUENCES + 1), "prompt"),
    ],
)
def test_what_is_no_prompt_is_refused_by_its_place(prompt: Any, param: str) -> None:
    assert refusal(prompt=prompt).param == param


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ("", "prompt"),
        (["a", ""], "prompt[1]"),
        ([1, 258], "prompt[1]"),
        ([[1], [999]], "prompt[1][0]"),
        ("x" * 5000, "prompt"),
    ],
)
def test_what_the_model_cannot_read_is_refused_by_its_place(
    served: ServedModel, prompt: Any, param: str
) -> None:
    with pytest.raises(ClientError) as caught:
        ids_of(served, prompt)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_an_empty_text_is_the_beginning_of_one_where_the_model_has_that(
    tmp_path: Path,
) -> None:
    folder = folders.write(
        tmp_path / "m", folders.byte_level(), bos_token="<|im_start|>"
    )
    model = read_model(folder)
    assert ids_of(model, "") == [(model.tokenizer.bos_id,)]


def test_the_dialects_own_defaults() -> None:
    request = parse_completion(body())
    assert request.sampling.max_tokens == 16
    assert (request.logprobs, request.prompt_logprobs) == (-1, -1)
    assert not request.echo
    assert "logprobs" not in request.sampling.given


def test_s67_the_newer_spelling_of_the_maximum_wins() -> None:
    both = parse_completion(body(max_tokens=5, max_completion_tokens=9))
    assert both.sampling.max_tokens == 9


def test_no_tokens_are_wanted_only_where_the_prompt_is() -> None:
    assert refusal(max_tokens=0).param == "max_tokens"
    for wanted in ({"echo": True}, {"prompt_logprobs": 0}):
        sampling = parse_completion(body(max_tokens=0, **wanted)).sampling
        assert (sampling.max_tokens, sampling.given["prompt_logprobs"]) == (0, 0)


def test_an_echo_with_logprobs_has_the_prompt_scored() -> None:
    given = parse_completion(body(echo=True, logprobs=3)).sampling.given
    assert (given["logprobs"], given["prompt_logprobs"]) == (3, 3)
    assert "prompt_logprobs" not in parse_completion(body(logprobs=3)).sampling.given
    both = parse_completion(body(echo=True, logprobs=1, prompt_logprobs=5))
    assert both.sampling.given["prompt_logprobs"] == 5


def test_more_scores_than_an_answer_can_carry_are_refused() -> None:
    request = parse_completion(body(echo=True, logprobs=20, n=2))
    assert request.check_scores(100) == 21 * 100 * 2
    with pytest.raises(ClientError) as caught:
        request.check_scores(MAX_SCORES)
    assert caught.value.param == "logprobs"
    streamed = parse_completion(body(echo=True, logprobs=0, stream=True))
    with pytest.raises(ClientError):
        streamed.check_scores(MAX_STREAMED_SCORES + 1)
    assert parse_completion(body(logprobs=20)).check_scores(MAX_SCORES) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"suffix": "x"},
        {"use_beam_search": True},
        {"truncate_prompt_tokens": 5},
        {"allowed_token_ids": [1]},
        {"skip_special_tokens": False},
        {"include_stop_str_in_output": True},
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(
    fields: dict[str, Any],
) -> None:
    error = refusal(**fields)
    assert error.code == "unsupported_parameter"
    assert [error.param] == list(fields)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 3}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"n": 17}, "n"),
        ({"n": 8, "prompt": ["a"] * 9}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"echo": 1}, "echo"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"add_special_tokens": "no"}, "add_special_tokens"),
        ({"stream_options": 1}, "stream_options"),
        ({"model": None}, "model"),
    ],
)
def test_fields_out_of_range_are_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    assert refusal(**fields).param == param


def test_what_asks_for_nothing_passes() -> None:
    harmless = {"best_of": 2, "n": 2, "suffix": "", "logprobs": None, "user": "me"}
    assert parse_completion(body(**harmless, logit_bias={})).sampling.n == 2
    assert parse_completion(body(logprobs=False)).logprobs == -1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["prompt", "n", "best_of", "logprobs", "echo", "suffix", "stop"]
)


@given(st.dictionaries(NAMES, JSON))
def test_any_document_is_read_or_refused(fields: dict[str, Any]) -> None:
    with suppress(ClientError):
        parse_completion(body(**fields))
