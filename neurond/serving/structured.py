"""What shape an answer must have: `response_format` and its sisters, as a grammar.

Pure; front end and gateway. A grammar travels to the device as a JSON object with
exactly one key:

    {"json_schema": {…}} | {"regex": "…"} | {"lark": "…"}

Whether it can be compiled is for `grammarcheck` to find out, off the loop.
Invariant: a body asks for one shape at most; a second one is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ipc.errors import ClientError
from neurond.serving import fields

MAX_GRAMMAR_BYTES = 256 << 10
MAX_CHOICES = 1024
ANY_OBJECT: dict[str, Any] = {"type": "object"}
_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Grammar:
    """`text` as it travels; `param` names the field that asked for it."""

    text: str
    param: str


def parse_structured(body: fields.Body) -> Grammar | None:
    """Raises ClientError naming the field."""
    found = [name for name in _READERS if body.get(name) is not None]
    grammars = [(name, _READERS[name](body[name], name)) for name in found]
    asked = [(name, grammar) for name, grammar in grammars if grammar is not None]
    if len(asked) > 1:
        names = " and ".join(name for name, _ in asked)
        raise ClientError(f"{names} exclude each other", param=asked[1][0])
    return ending(body, asked[0][1]) if asked else None


def ending(body: fields.Body, grammar: Grammar) -> Grammar:
    """The same grammar. An answer has to end where its grammar does.

    Raises ClientError when it may not.
    """
    if fields.flag(body, "ignore_eos"):
        words = f"ignore_eos and {grammar.param} exclude each other"
        raise ClientError(words, param="ignore_eos")
    return grammar


def grammar_of(kind: str, value: Any, param: str) -> Grammar:
    """`kind`: json_schema, regex or lark. Raises ClientError when it is too large."""
    try:
        text = _encode({kind: value})
    except RecursionError as error:
        raise ClientError(f"{param} is nested too deeply", param=param) from error
    if len(text) > MAX_GRAMMAR_BYTES:
        wanted = f"{param} must have at most {MAX_GRAMMAR_BYTES} bytes"
        raise ClientError(f"{wanted}, got {len(text)}", param=param)
    return Grammar(text.decode(), param)


def literal(text: str) -> str:
    """As a Lark grammar writes a text: escaped like JSON, and nothing but ASCII.

    Without a percent sign, which begins directives.
    """
    return json.dumps(text).replace("%", "\\u0025")


def _response_format(value: object, param: str) -> Grammar | None:
    if type(value) is not dict:
        raise fields.invalid(param, "an object", value)
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")  # some clients' spelling of json_schema
        return _schema(ANY_OBJECT if schema is None else schema, f"{param}.schema")
    if kind != "json_schema":
        wanted = "text, json_object or json_schema"
        raise fields.invalid(f"{param}.type", wanted, kind)
    described = value.get("json_schema")
    if type(described) is not dict:
        raise fields.invalid(f"{param}.json_schema", "an object", described)
    return _schema(described.get("schema"), f"{param}.json_schema.schema")


def _schema(value: object, param: str) -> Grammar:
    if type(value) is not dict:
        raise fields.invalid(param, "an object", value)
    return grammar_of("json_schema", value, param)


def _json(value: object, param: str) -> Grammar:
    """A schema, or its JSON text."""
    if type(value) is str:
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise fields.invalid(param, "a JSON schema", value) from error
    return _schema(value, param)


def _regex(value: object, param: str) -> Grammar:
    return grammar_of("regex", _text(value, param), param)


def _lark(value: object, param: str) -> Grammar:
    return grammar_of("lark", _text(value, param), param)


def _choice(value: object, param: str) -> Grammar:
    wanted = f"an array of 1 to {MAX_CHOICES} strings"
    if type(value) is not list or not 0 < len(value) <= MAX_CHOICES:
        raise fields.invalid(param, wanted, value)
    texts = dict.fromkeys([literal(_text(item, param)) for item in value])
    return grammar_of("lark", "start: " + " | ".join(texts), param)


def _text(value: object, param: str) -> str:
    if type(value) is not str or not value:
        raise fields.invalid(param, "a string that isn't empty", value)
    return value


def _json_object(value: object, param: str) -> Grammar | None:
    if type(value) is not bool:
        raise fields.invalid(param, "true or false", value)
    return grammar_of("json_schema", ANY_OBJECT, param) if value else None


def _structured_outputs(value: object, param: str) -> Grammar | None:
    """The spelling with one object for all kinds."""
    if type(value) is not dict:
        raise fields.invalid(param, "an object", value)
    inner = {name: item for name, item in value.items() if item is not None}
    known = [name for name in inner if name in _KINDS]
    for name in inner.keys() - _KINDS.keys():
        if inner[name] not in (False, ""):
            raise fields.invalid(param, f"made of {', '.join(_KINDS)}", name)
    if len(known) != 1:
        wanted = f"an object with exactly one of {', '.join(_KINDS)}"
        raise fields.invalid(param, wanted, value)
    return _KINDS[known[0]](inner[known[0]], f"{param}.{known[0]}")


_Reader = Callable[[object, str], Grammar | None]
_KINDS: Mapping[str, _Reader] = {
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _lark,
    "json_object": _json_object,
}
_READERS: Mapping[str, _Reader] = {
    "response_format": _response_format,
    "guided_json": _json,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _lark,
    "structured_outputs": _structured_outputs,
}
