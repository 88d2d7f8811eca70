"""Functions offered and forced: grammars that accept calls and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from ipc.errors import ClientError
from neurond.grammar import check
from neurond.serving.toolcalls import ForcedCall
from neurond.serving.tools import ToolRequest, parse_tools

BYTES = LLTokenizer("byte")
WEATHER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"City": {"type": "string", "maxLength": 10}},
}


def tool(name: str = "weather", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


TOOLS = [tool(parameters=WEATHER, description="w"), tool("now")]
NAMED = {"type": "function", "function": {"name": "now"}}


def parsed(tools: Any = TOOLS, choice: Any = "required", **more: Any) -> ToolRequest:
    return parse_tools({"tools": tools, "tool_choice": choice, **more})


def refusal(tools: Any = TOOLS, choice: Any = "required", **more: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        parsed(tools, choice, **more)
    assert caught.value.status == 400
    return caught.value


def accepts(request: ToolRequest, text: str) -> bool:
    """Whether the forced grammar takes exactly this text."""
    assert request.grammar is not None
    lark = json.loads(request.grammar.text)["lark"]
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(lark))
    assert not matcher.is_error(), matcher.get_error()
    ids = list(text.encode())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def test_a_forced_call_is_one_of_the_functions_with_its_own_arguments() -> None:
    request = parsed()
    assert [t["function"]["name"] for t in request.offered] == ["weather", "now"]
    assert accepts(request, '{"name": "weather", "arguments": {"city": "Oslo"}}')
    assert accepts(request, '{"name": "now", "arguments": {}}')
    assert not accepts(request, '{"name": "now", "arguments": {"city": "Oslo"}}')
    assert not accepts(request, '{"name": "weather", "arguments": {"city": 5}}')
    assert not accepts(request, '{"name": "other", "arguments": {}}')
    assert not accepts(request, "Sure, I can help")


def test_a_named_function_is_the_only_one() -> None:
    request = parsed(choice=NAMED)
    assert len(request.offered) == 2
    assert accepts(request, '{"name": "now", "arguments": {}}')
    assert not accepts(request, '{"name": "weather", "arguments": {"city": "Oslo"}}')


def test_each_functions_references_find_its_own_definitions() -> None:
    other = {**WEATHER, "$defs": {"City": {"type": "integer"}}}
    request = parsed([tool("a", parameters=WEATHER), tool("b", parameters=other)])
    assert accepts(request, '{"name": "a", "arguments": {"city": "x"}}')
    assert accepts(request, '{"name": "b", "arguments": {"city": 5}}')
    assert not accepts(request, '{"name": "b", "arguments": {"city": "x"}}')


@pytest.mark.parametrize(
    "name", ['a"b', "a\\b", "größe", "a.b/c:d", "x" * 128, "\n\x7f\u2028😀"]
)
def test_any_name_is_written_as_json_and_read_back(name: str) -> None:
    text = json.dumps({"name": name, "arguments": {}}, ensure_ascii=False)
    request = parsed([tool(name)])
    assert accepts(request, text)
    delta = ForcedCall().push(text)
    assert delta is not None
    assert (delta.name, delta.arguments) == (name, "{}")


def test_what_looks_like_a_directive_is_only_text() -> None:
    words = {"enum": ['%json {"a": 5}', "%ignore", "%"]}
    schema = {"properties": {"%json": words}, "description": "100 %json"}
    request = parsed([tool("%json", parameters=schema)])
    assert request.grammar is not None
    check(request.grammar.text)
    text = '{"name": "%json", "arguments": {"%json": "%ignore"}}'
    assert accepts(request, text)


def test_a_full_set_of_tools_passes_the_check() -> None:
    request = parsed([tool(f"f{i}", parameters=WEATHER) for i in range(128)])
    assert request.grammar is not None
    check(request.grammar.text)


def test_arguments_are_always_an_object() -> None:
    request = parsed([tool(parameters={"description": "anything"})])
    assert accepts(request, '{"name": "weather", "arguments": {"x": [1, 2]}}')
    assert not accepts(request, '{"name": "weather", "arguments": 5}')


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        (TOOLS, "none"),
        ([], "auto"),
        ([], None),
        (None, None),
        (None, "none"),
        (None, "auto"),
    ],
)
def test_no_tools_or_none_wanted_is_no_call(tools: Any, choice: Any) -> None:
    assert parsed(tools, choice) == ToolRequest()


@pytest.mark.parametrize("choice", ["auto", None])
def test_a_free_choice_is_refused_by_name(choice: Any) -> None:
    error = refusal(choice=choice)
    assert (error.code, error.param) == ("unsupported_parameter", "tools")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": "x"}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [tool("")]}, "tools[0].function.name"),
        ({"tools": [tool("x" * 129)]}, "tools[0].function.name"),
        ({"tools": [tool(), tool()]}, "tools[1].function.name"),
        ({"tools": [tool(parameters="x")]}, "tools[0].function.parameters"),
        ({"tools": [tool(str(i)) for i in range(129)]}, "tools"),
        ({"tools": [], "choice": "required"}, "tool_choice"),
        ({"choice": "any"}, "tool_choice"),
        ({"choice": 5}, "tool_choice"),
        ({"choice": {}}, "tool_choice"),
        ({"choice": {"type": "custom", "custom": {}}}, "tool_choice"),
        ({"choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
        ({"choice": tool("other")}, "tool_choice.function.name"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ],
)
def test_nonsense_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


def test_parameters_nested_without_end_are_refused_not_a_bug() -> None:
    nested: dict[str, Any] = {}
    for _ in range(100_000):
        nested = {"items": nested}
    assert refusal([tool(parameters=nested)]).param == "tools"
    while nested:  # else its end would be recursion too
        nested = nested.pop("items")


@pytest.mark.parametrize("parallel", [True, False, None])
def test_parallel_calls_may_be_allowed_or_not(parallel: Any) -> None:
    assert parsed(parallel_tool_calls=parallel).grammar is not None
