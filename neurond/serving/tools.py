"""The functions that a client offers, and which of them an answer must call.

Pure; front end and gateway. A call that is forced is enforced by a grammar, whatever
the model: the answer is one JSON object, written as models are trained to write it.

    {"name": "get_weather", "arguments": {"city": "Oslo"}}

Invariant: tools are offered to the model, forced on it, left out on the client's own
word, or refused; they are never dropped in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from ipc.errors import ClientError
from neurond.serving import fields
from neurond.serving.structured import Grammar, grammar_of, literal

MAX_TOOLS = 128
MAX_NAME_CHARS = 128
_NO_PARAMETERS = {"properties": {}, "additionalProperties": False}
_COMPACT = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""One way to write the arguments: free whitespace is where small models get lost."""

Tool = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """`offered` is for the template; `grammar` forces a call, None = no call."""

    offered: tuple[Tool, ...] = ()
    grammar: Grammar | None = None


def parse_tools(body: fields.Body) -> ToolRequest:
    """Raises ClientError naming the field."""
    fields.flag(body, "parallel_tool_calls")
    tools = _tools(body.get("tools"))
    choice = _choice(body.get("tool_choice"), tools)
    if choice == "none":
        return ToolRequest()
    if choice == "auto":
        raise ClientError(
            "tools with tool_choice auto are not supported for this model yet; ask for"
            " a call with required or a function's name",
            code="unsupported_parameter",
            param="tools",
        )
    return ToolRequest(tuple(tools.values()), _forced(tools, choice))


def _tools(value: object) -> dict[str, Tool]:
    """By name."""
    if value is None:
        return {}
    if type(value) is not list or len(value) > MAX_TOOLS:
        raise fields.invalid("tools", f"an array of at most {MAX_TOOLS} tools", value)
    tools: dict[str, Tool] = {}
    for index, item in enumerate(value):
        tool = _tool(item, f"tools[{index}]")
        name = tool["function"]["name"]
        if name in tools:
            raise fields.invalid(f"tools[{index}].function.name", "unique", name)
        tools[name] = tool
    return tools


def _tool(item: object, path: str) -> Tool:
    if type(item) is not dict:
        raise fields.invalid(path, "an object", item)
    if item.get("type", "function") != "function":
        raise fields.invalid(f"{path}.type", "function", item["type"])
    function = item.get("function")
    if type(function) is not dict:
        raise fields.invalid(f"{path}.function", "an object", function)
    _name(function.get("name"), f"{path}.function.name")
    parameters = function.get("parameters")
    if parameters is not None and type(parameters) is not dict:
        raise fields.invalid(f"{path}.function.parameters", "an object", parameters)
    return {"type": "function", "function": function}


def _name(value: object, path: str) -> str:
    if type(value) is not str or not 0 < len(value) <= MAX_NAME_CHARS:
        wanted = f"a string of 1 to {MAX_NAME_CHARS} characters"
        raise fields.invalid(path, wanted, value)
    return value


def _choice(value: object, tools: dict[str, Tool]) -> str | tuple[str]:
    """none, auto or required; a function's name as a tuple of one."""
    if value is None:
        return "auto" if tools else "none"
    if type(value) is dict:
        return (_named(value, tools),)
    if type(value) is not str or value not in ("none", "auto", "required"):
        wanted = "none, auto, required or an object with a function's name"
        raise fields.invalid("tool_choice", wanted, value)
    if value == "required" and not tools:
        raise ClientError("tool_choice required needs tools", param="tool_choice")
    return value if tools else "none"


def _named(value: dict[str, Any], tools: dict[str, Tool]) -> str:
    function = value.get("function")
    if value.get("type", "function") != "function" or type(function) is not dict:
        wanted = 'of the form {"type": "function", "function": {"name": …}}'
        raise fields.invalid("tool_choice", wanted, value)
    name = _name(function.get("name"), "tool_choice.function.name")
    if name not in tools:
        raise fields.invalid("tool_choice.function.name", "one of the tools", name)
    return name


def _forced(tools: dict[str, Tool], choice: str | tuple[str]) -> Grammar:
    """Each tool has rules of its own, so that `$ref` finds its own schema's roots."""
    names = list(tools) if choice == "required" else list(choice)
    starts = " | ".join(f"call_{index}" for index in range(len(names)))
    functions = [tools[name]["function"] for name in names]
    try:
        rules = [_rule(index, each) for index, each in enumerate(functions)]
    except RecursionError as error:
        raise ClientError("tools are nested too deeply", param="tools") from error
    return grammar_of("lark", "\n".join([f"start: {starts}", *rules]), "tools")


def _rule(index: int, function: dict[str, Any]) -> str:
    given = function.get("parameters")
    parameters = _NO_PARAMETERS if given is None else given
    schema = {**parameters, "type": "object", "x-guidance": _COMPACT}
    head = literal(f'{{"name": {_json_text(function["name"])}, "arguments": ')
    return (
        f'call_{index}: {head} arguments_{index} "}}"\n'
        f"arguments_{index}: %json {_embedded(schema)}"
    )


def _json_text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _embedded(value: Any) -> str:
    """Inside a grammar, so without the sign that begins a directive."""
    return _json_text(value).replace("%", "\\u0025")
