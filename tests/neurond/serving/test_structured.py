"""Shapes of answers: every spelling to one grammar, bad ones refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from ipc.errors import ClientError
from neurond.grammar import check
from neurond.serving.structured import Grammar, parse_structured

BYTES = LLTokenizer("byte")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def grammar(**fields: Any) -> dict[str, Any]:
    found = parse_structured(fields)
    assert found is not None
    parsed: dict[str, Any] = json.loads(found.text)
    assert len(parsed) == 1
    return parsed


def refusal(**fields: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        parse_structured(fields)
    assert caught.value.status == 400
    return caught.value


def schema_format(schema: Any = SCHEMA, **more: Any) -> dict[str, Any]:
    described = {"name": "answer", "schema": schema, "strict": True, **more}
    return {"type": "json_schema", "json_schema": described}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": schema_format()}, {"json_schema": SCHEMA}),
        (
            {"response_format": {"type": "json_object"}},
            {"json_schema": {"type": "object"}},
        ),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            {"json_schema": SCHEMA},
        ),
        ({"guided_json": SCHEMA}, {"json_schema": SCHEMA}),
        ({"guided_json": json.dumps(SCHEMA)}, {"json_schema": SCHEMA}),
        ({"guided_regex": "[a-z]+"}, {"regex": "[a-z]+"}),
        ({"guided_grammar": 'start: "a"'}, {"lark": 'start: "a"'}),
        ({"guided_choice": ["a", 'b"']}, {"lark": 'start: "a" | "b\\""'}),
        ({"structured_outputs": {"json": SCHEMA}}, {"json_schema": SCHEMA}),
        ({"structured_outputs": {"regex": "a"}}, {"regex": "a"}),
        ({"structured_outputs": {"choice": ["a"]}}, {"lark": 'start: "a"'}),
        ({"structured_outputs": {"grammar": "x"}}, {"lark": "x"}),
        (
            {"structured_outputs": {"json_object": True, "regex": None}},
            {"json_schema": {"type": "object"}},
        ),
    ],
)
def test_every_spelling_becomes_one_grammar(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert grammar(**fields) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": None, "guided_json": None, "structured_outputs": None},
        {"response_format": {"type": "text"}},
    ],
)
def test_nothing_asked_is_no_grammar(fields: dict[str, Any]) -> None:
    assert parse_structured(fields) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": ["text"]}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": schema_format(None)},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": schema_format([SCHEMA])},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_object", "schema": "x"}},
            "response_format.schema",
        ),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
        ({"guided_json": "{nonsense"}, "guided_json"),
        ({"guided_json": "[]"}, "guided_json"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_regex": ["a"]}, "guided_regex"),
        ({"guided_grammar": {}}, "guided_grammar"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a", ""]}, "guided_choice"),
        ({"guided_choice": ["a", 5]}, "guided_choice"),
        ({"guided_choice": [["a"]]}, "guided_choice"),
        ({"guided_choice": ["a"] * 1025}, "guided_choice"),
        ({"structured_outputs": []}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
    ],
)
def test_nonsense_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


def test_what_a_grammar_reads_otherwise_is_only_text_in_a_choice() -> None:
    found = parse_structured({"guided_choice": ["%json {", "%", "\x7f"]})
    assert found is not None
    check(found.text)


def test_two_shapes_at_once_are_refused() -> None:
    error = refusal(response_format={"type": "json_object"}, guided_regex="a")
    assert error.param == "guided_regex"
    text = {"type": "text"}
    assert grammar(response_format=text, guided_regex="a") == {"regex": "a"}


def test_an_object_without_a_shape_is_told_which_there_are() -> None:
    kinds = "json, regex, choice, grammar, json_object"
    wanted = f"structured_outputs must be an object with exactly one of {kinds}"
    assert refusal(structured_outputs={}).message == f"{wanted}, got {{}}"


def test_a_grammar_has_a_size() -> None:
    enum = {"enum": ["x" * 1000 + str(i) for i in range(300)]}
    assert refusal(guided_json=enum).param == "guided_json"


def test_a_schema_nested_without_end_is_refused_not_a_bug() -> None:
    nested: dict[str, Any] = {}
    for _ in range(100_000):
        nested = {"items": nested}
    assert refusal(guided_json=nested).param == "guided_json"
    while nested:  # else its end would be recursion too
        nested = nested.pop("items")


@example(["\x7f", "\u2028", "😀"])
@given(
    st.lists(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
        min_size=1,
        max_size=5,
    )
)
def test_any_choices_at_all_make_a_grammar_that_compiles(choices: list[str]) -> None:
    found = parse_structured({"guided_choice": choices})
    assert isinstance(found, Grammar)
    lark = LLMatcher.grammar_from_lark(json.loads(found.text)["lark"])
    for choice in choices:
        matcher = LLMatcher(BYTES, lark)
        ids = list(choice.encode())
        assert matcher.try_consume_tokens(ids) == len(ids), matcher.get_error()
        assert matcher.is_accepting()
