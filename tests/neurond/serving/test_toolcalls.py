"""A forced call as deltas, however its text is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurond.serving.toolcalls import MAX_HEAD_CHARS, ForcedCall, call_id

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=4)
NAMES = st.text(min_size=1, max_size=8)


def run(pieces: list[str]) -> tuple[list[str], str, str, bool]:
    """Names, arguments, what is no call, and whether it is whole."""
    call, names, arguments = ForcedCall(), [], ""
    for piece in pieces:
        delta = call.push(piece)
        if delta is None:
            continue
        if delta.name is not None:
            assert not arguments
            names.append(delta.name)
        assert names
        arguments += delta.arguments
    return names, arguments, call.rest(), call.is_complete


@given(NAMES, OBJECTS, st.booleans(), st.sampled_from(["", " ", "\n  "]))
def test_a_call_cut_at_every_character_is_the_same_call(
    name: str, arguments: dict[str, Any], ascii_only: bool, space: str
) -> None:
    inner = json.dumps(arguments, ensure_ascii=ascii_only)
    head = f'{space}{{{space}"name"{space}:{space}{json.dumps(name)}{space},{space}'
    text = f'{head}"arguments"{space}:{space}{inner}{space}}}'
    expected = ([name], inner, "", True)
    assert run([text]) == run(list(text)) == expected
    for at in range(len(text)):
        assert run([text[:at], text[at:]]) == expected


@pytest.mark.parametrize("at", range(0, 40, 3))
def test_a_call_that_is_cut_off_has_what_came(at: int) -> None:
    text = '{"name": "f", "arguments": {"a": "b}"}}'
    names, arguments, rest, whole = run(list(text[:at]))
    assert (names, arguments, rest, whole) == run([text[:at]])
    if names:
        assert (rest, text[:at].endswith(arguments)) == ("", True) or whole
    else:
        assert (rest, arguments) == (text[:at], "")


def test_what_stands_behind_the_arguments_is_nobodys() -> None:
    text = '{"name": "f", "arguments": {"a": {}}} and more {}'
    assert run([text]) == run(list(text)) == (["f"], '{"a": {}}', "", True)


@pytest.mark.parametrize(
    "text",
    ["hello", '{"name": 5}', '{"name": "f", "arguments": 5}', '{"arguments": {}}', "[]"]
    + [" " * MAX_HEAD_CHARS + '{"name": "f", "arguments": {}}'],
)
def test_text_that_is_no_call_is_given_back(text: str) -> None:
    assert run([text]) == run(list(text)) == ([], "", text, False)


def test_ids_are_the_same_again_and_differ_between_choices() -> None:
    assert call_id("a", 0) == call_id("a", 0)
    assert len({call_id("a", 0), call_id("a", 1), call_id("b", 0)}) == 3
