"""Every numeric field against hostile numbers (T6), S67, S70, and refusals by name."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import ClientError
from neurond.serving.params import ChatRequest, parse_chat
from neurond.serving.sampling import ModelLimits, generation_defaults, resolve

LIMITS = ModelLimits(window=100, vocab_size=1000, defaults={})
HOSTILE = {
    "-1": -1,
    "0": 0,
    "2^31": 1 << 31,
    "2^63": 1 << 63,
    "1e308": 1e308,
    "NaN": float("nan"),
    "inf": float("inf"),
    "string": "5",
    "true": True,
    "null": None,
    "list": [1],
    "object": {"a": 1},
}
ACCEPTED = {
    "temperature": {"0", "null"},
    "top_p": {"0", "null"},
    "min_p": {"0", "null"},
    "typical_p": {"0", "null"},
    "presence_penalty": {"-1", "0", "null"},
    "frequency_penalty": {"-1", "0", "null"},
    "repetition_penalty": {"null"},
    "top_k": {"-1", "0", "2^31", "2^63", "null"},
    "n": {"null"},
    "seed": {"-1", "0", "2^31", "2^63", "null"},
    "max_tokens": {"2^31", "2^63", "null"},
    "max_completion_tokens": {"2^31", "2^63", "null"},
    "min_tokens": {"0", "2^31", "2^63", "null"},
}


def chat(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    return {"model": "m", "messages": messages, **fields}


def parsed(**fields: Any) -> ChatRequest:
    return parse_chat(chat(**fields))


def refusal(**fields: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        parse_chat(chat(**fields))
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("field", ACCEPTED)
def test_a_hostile_number_is_in_range_or_refused_by_name(
    field: str, hostile: str
) -> None:
    value = HOSTILE[hostile]
    if hostile in ACCEPTED[field]:
        parsed(**{field: value})
    else:
        assert refusal(**{field: value}).param == field


STRUCTURED = ("logit_bias", "stop", "stop_token_ids", "logprobs", "top_logprobs")
JSON = st.sampled_from(list(HOSTILE.values())) | st.integers() | st.floats() | st.text()


@given(st.dictionaries(st.sampled_from([*ACCEPTED, *STRUCTURED]), JSON))
def test_any_values_at_all_yield_a_request_or_a_named_field(
    fields: dict[str, Any],
) -> None:
    problem = None
    try:
        resolve(parsed(**fields).sampling, LIMITS, num_prompt=10)
    except ClientError as error:
        problem = error.param
    assert problem is None or problem in fields


SHAPES = (
    "response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "structured_outputs", "tools", "tool_choice", "parallel_tool_calls", "ignore_eos",
)  # fmt: skip
WORDS = st.sampled_from(
    ["type", "function", "name", "parameters", "json_schema", "schema", "required"]
    + ["json", "regex", "choice", "grammar", "json_object", "none", "auto", "f"]
)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(SHAPES), DOCUMENTS, max_size=3))
def test_any_documents_at_all_yield_a_request_or_a_named_field(
    fields: dict[str, Any],
) -> None:
    asked = problem = None
    try:
        asked = parsed(**fields).grammar
    except ClientError as error:
        problem = error
    if problem is not None:
        assert problem.status == 400
        assert re.split(r"[.\[]", problem.param or "")[0] in fields
    assert asked is None or len(msgspec.json.decode(asked.text)) == 1


def test_s67_the_newer_spelling_of_max_tokens_wins() -> None:
    assert parsed(max_tokens=5, max_completion_tokens=7).sampling.max_tokens == 7
    assert parsed(max_tokens=5, max_completion_tokens=None).sampling.max_tokens == 5


def test_s67_without_a_maximum_the_answer_has_the_models_room() -> None:
    assert resolve(parsed().sampling, LIMITS, num_prompt=40).max_tokens == 60


def test_a_maximum_over_the_window_is_clamped() -> None:
    assert (
        resolve(parsed(max_tokens=32_000).sampling, LIMITS, num_prompt=40).max_tokens
        == 60
    )


@pytest.mark.parametrize("num_prompt", [100, 101, 5000])
def test_s74_a_prompt_without_room_for_an_answer_is_refused_with_both_figures(
    num_prompt: int,
) -> None:
    with pytest.raises(ClientError) as caught:
        resolve(parsed().sampling, LIMITS, num_prompt=num_prompt)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.fields == {"prompt_len": num_prompt, "max": 100}


def test_a_prompt_that_leaves_one_token_of_room_is_served() -> None:
    assert resolve(parsed().sampling, LIMITS, num_prompt=99).max_tokens == 1


def test_s70_request_beats_generation_config_beats_built_in() -> None:
    config = {"temperature": 0.2, "top_p": 0.9, "top_k": 20, "do_sample": True}
    limits = ModelLimits(100, 1000, generation_defaults(config))
    sampling = resolve(parsed(temperature=0.7).sampling, limits, num_prompt=1).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 0.9, 20)
    assert sampling.repetition_penalty == 1.0


def test_s70_explicit_zeros_of_the_request_beat_the_models_defaults() -> None:
    defaults = generation_defaults({"temperature": 0.6, "top_k": 20, "min_p": 0.1})
    limits = ModelLimits(100, 1000, defaults)
    asked = parsed(temperature=0, top_k=0, min_p=0).sampling
    sampling = resolve(asked, limits, num_prompt=1).sampling
    assert (sampling.temperature, sampling.top_k, sampling.min_p) == (0.0, 0, 0.0)


def test_a_model_that_says_do_not_sample_is_greedy_by_default() -> None:
    config = {"do_sample": False, "temperature": 1.0}
    assert generation_defaults(config)["temperature"] == 0.0


def test_nonsense_in_a_generation_config_counts_as_absent() -> None:
    config = {"temperature": "hot", "top_p": 7, "top_k": -3, "min_p": None}
    assert generation_defaults(config) == {}


@pytest.mark.parametrize("field", ["top_p", "typical_p"])
def test_a_nucleus_of_zero_still_holds_the_best_token(field: str) -> None:
    assert parsed(**{field: 0}).sampling.given[field] > 0


def test_s70_typical_p_follows_the_same_order() -> None:
    limits = ModelLimits(100, 1000, generation_defaults({"typical_p": 0.4}))
    for fields, expected in (({}, 0.4), ({"typical_p": 0.7}, 0.7)):
        resolved = resolve(parsed(**fields).sampling, limits, num_prompt=1)
        assert resolved.sampling.typical_p == expected
    assert resolve(parsed().sampling, LIMITS, num_prompt=1).sampling.typical_p == 1.0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, -1),
        ({"logprobs": False, "top_logprobs": 0}, -1),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_logprobs_and_their_alternatives(fields: dict[str, Any], expected: int) -> None:
    resolved = resolve(parsed(**fields).sampling, LIMITS, num_prompt=1)
    assert resolved.sampling.logprobs == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": True}, "top_logprobs"),
        ({"logprobs": 5}, "logprobs"),
    ],
)
def test_absurd_logprobs_are_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    assert refusal(**fields).param == param


def test_stop_ids_are_the_models_and_the_requests() -> None:
    limits = ModelLimits(100, 1000, {}, stop_ids=(2, 7, 1000))
    asked = parsed(stop_token_ids=[5, 7, 5, 999])
    assert resolve(asked.sampling, limits, num_prompt=1).stop_ids == (2, 7, 5, 999)
    asked = parsed(stop_token_ids=[5], ignore_eos=True)
    assert resolve(asked.sampling, limits, num_prompt=1).stop_ids == (5,)


@pytest.mark.parametrize(
    "ids", [5, "5", [-1], [True], ["5"], [1.0], [None], list(range(257)), [1 << 40]]
)
def test_bad_stop_token_ids_are_refused(ids: Any) -> None:
    assert refusal(stop_token_ids=ids).param == "stop_token_ids"


def test_stop_token_ids_are_checked_against_the_vocabulary() -> None:
    with pytest.raises(ClientError, match="1000") as caught:
        resolve(parsed(stop_token_ids=[1000]).sampling, LIMITS, num_prompt=1)
    assert caught.value.param == "stop_token_ids"


def test_top_k_fits_the_devices_integers() -> None:
    assert parsed(top_k=1 << 63).sampling.given["top_k"] == (1 << 31) - 1
    assert parsed(top_k=-1).sampling.given["top_k"] == 0


@pytest.mark.parametrize("wanted", [50, 1 << 40])
def test_min_tokens_above_the_maximum_are_refused_once_the_room_is_known(
    wanted: int,
) -> None:
    with pytest.raises(ClientError) as caught:
        resolve(parsed(min_tokens=wanted).sampling, LIMITS, num_prompt=60)
    assert caught.value.param == "min_tokens"
    assert caught.value.message.endswith(f"at most max_tokens (40), got {wanted}")


@given(st.integers())
def test_every_integer_is_a_seed_and_none_of_64_bits_is_another_one(
    seed: int,
) -> None:
    """The ring and the device have 64 bits without a sign."""
    taken = parsed(seed=seed).sampling.seed
    assert taken is not None
    assert 0 <= taken < 1 << 64
    assert (taken - seed) % (1 << 64) == 0


def test_seeds_of_both_ends_reach_the_device_as_they_are() -> None:
    ends = (-(1 << 63), (1 << 63) - 1, (1 << 64) - 1, 1 << 64)
    body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "seed": %d}'
    taken = [parse_chat(msgspec.json.decode(body % e)).sampling.seed for e in ends]
    assert taken == [1 << 63, (1 << 63) - 1, (1 << 64) - 1, 0]


def test_logit_bias_is_checked_against_the_vocabulary() -> None:
    asked = parsed(logit_bias={"999": -100}).sampling
    sampling = resolve(asked, LIMITS, num_prompt=1).sampling
    assert sampling.logit_bias == ((999, -100.0),)
    with pytest.raises(ClientError, match="1000"):
        resolve(parsed(logit_bias={"1000": 1}).sampling, LIMITS, num_prompt=1)


@pytest.mark.parametrize(
    "bias",
    [{"x": 1}, {"-1": 1}, {"1": 101}, {"1": True}, {"1": "2"}, {"¹": 1}, [1], 5]
    + [{"1": float("nan")}, {str(i): 1 for i in range(1025)}, {"9" * 400: 1}],
)
def test_a_bad_logit_bias_is_refused(bias: Any) -> None:
    assert refusal(logit_bias=bias).param == "logit_bias"


def test_1024_biases_16_stops_and_16_choices_are_served() -> None:
    names = [str(i) for i in range(1024)]
    request = parsed(logit_bias=dict.fromkeys(names, 1), stop=names[:16], n=16)
    assert (len(request.sampling.given["logit_bias"]), len(request.sampling.stop)) == (
        1024,
        16,
    )
    assert request.sampling.n == 16


@pytest.mark.parametrize("n", [17, 100, 1 << 31])
def test_more_than_16_choices_are_refused(n: int) -> None:
    assert refusal(n=n).param == "n"


@pytest.mark.parametrize(
    "stop", ["", [""], 5, True, {}, [1], [None], ["x"] * 17, "x" * 1025]
)
def test_a_bad_stop_is_refused(stop: Any) -> None:
    assert refusal(stop=stop).param == "stop"


@pytest.mark.parametrize(
    ("stop", "expected"), [(None, ()), ([], ()), ("a", ("a",)), (["a", "a"], ("a",))]
)
def test_stop_is_a_string_or_an_array(stop: Any, expected: tuple[str, ...]) -> None:
    assert parsed(stop=stop).sampling.stop == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("functions", [{"name": "f"}]),
        ("chat_template", "{{ x }}"),
        ("chat_template_kwargs", {"tokenize": True}),
        ("guided_whitespace_pattern", " "),
        ("modalities", ["text", "audio"]),
        ("best_of", 3),
    ],
)
def test_a_field_that_would_change_the_answer_is_refused_by_name(
    field: str, value: Any
) -> None:
    error = refusal(**{field: value})
    assert (error.code, error.param) == ("unsupported_parameter", field)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": False},
        {"response_format": {"type": "text"}, "logprobs": False, "functions": None},
        {"store": True, "metadata": {"a": "b"}, "user": "u", "prediction": {}},
        {"service_tier": "auto", "reasoning_effort": "low", "whatever": [1, 2]},
        {"stream": None, "stream_options": None, "n": None, "stop": None},
    ],
)
def test_fields_that_change_nothing_are_accepted(fields: dict[str, Any]) -> None:
    assert parsed(**fields).sampling.n == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "include_usage"),
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"model": "m" * 257}, "model"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"cache_salt": 5}, "cache_salt"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"cache_salt": "s" * 257}, "cache_salt"),
    ],
)
def test_a_wrong_type_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


@pytest.mark.parametrize("body", [None, [], "x", 5, True])
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    with pytest.raises(ClientError):
        parse_chat(body)


def test_a_refused_value_is_shown_shortened() -> None:
    assert len(refusal(temperature="x" * 10_000).message) < 200


def test_whole_request_from_json_text() -> None:
    text = b"""{"model": "m", "stream": true, "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": "x"}], "seed": -7, "n": 2}"""
    request = parse_chat(msgspec.json.decode(text))
    assert (request.stream, request.include_usage) == (True, True)
    assert (request.sampling.seed, request.sampling.n) == (2**64 - 7, 2)
