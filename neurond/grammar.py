"""Grammars: what an answer must look like, as a request carries it.

Front end and device; no torch. On its way a grammar is a JSON object with exactly one
key: `json_schema` (a schema), `json_object` (true), `regex` or `lark` (a text). The
front end writes and checks it, the device compiles it again for its own tokenizer.

What arrives is hostile until checked. llguidance compiles by recursion, so chains of
references are bounded and it runs only on threads with a large stack: an overflow would
end the process. It is bounded in steps too, which some grammars escape; so the check is
done by `compiling`, in a process that may be ended.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any, Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from ipc.errors import ClientError
from neurond.compiling import Compilers

JSON_SCHEMA: Final = "json_schema"
JSON_OBJECT: Final = "json_object"
REGEX: Final = "regex"
LARK: Final = "lark"

MAX_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 64
MAX_NODES: Final = 20_000
MAX_MEMBERS: Final = 1_000
MAX_REFERENCES: Final = 256
MAX_LINES: Final = 512
MAX_JOINS: Final = 8
CHECK_S: Final = 2.0
STACK_BYTES: Final = 64 << 20

LIMITS: Final = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
"""Of a lexer's start (10 ms), of a mask (8 ms), of its memory (100 MB)."""

# one space, or a line break and its indentation: both how models write compact JSON and
# how they lay it out, but no run of white space that never ends
_WHITE_SPACE = r"\x20|\n\x20{0,64}|\n\t{0,16}"
_PATTERNS = frozenset({"pattern", "format", "patternProperties"})
_MAX_MESSAGE = 600
COMPILERS: Final = Compilers(most=2)
_starting = threading.Lock()


def write(kind: str, value: Any) -> str:
    """The text that `Submit.grammar` holds."""
    return json.dumps({kind: value}, ensure_ascii=False, separators=(",", ":"))


def schema_with_policy(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with our rule for white space, where it has none of its own.

    For `%json` in a Lark text; a json_schema grammar gets it by itself.
    """
    told = schema.get("x-guidance")
    own = told if isinstance(told, dict) else {}
    return {**schema, "x-guidance": {"whitespace_pattern": _WHITE_SPACE, **own}}


def compiler_form(grammar: str) -> str:
    """What llguidance takes. Raises ClientError for what is over the bounds."""
    kind, value = _parse(grammar)
    if kind == JSON_OBJECT:
        return _schema_form({"type": "object"})
    if kind == JSON_SCHEMA:
        _bound(value)
        return _schema_form(value)
    if kind == REGEX:
        return LLMatcher.grammar_from_regex(value)
    _bound_lark(value)
    return json.dumps({"grammars": [{"lark_grammar": value}]})


def check(grammar: str, param: str | None = None) -> None:
    """Raises ClientError, with the compiler's own words, when it can't be obeyed.

    Needs no tokenizer: it compiles for single bytes. Blocking, milliseconds as a rule,
    `CHECK_S` at most; keep it off an event loop. CapacityError when others have been at
    it for as long.
    """
    try:
        _parse(grammar)
    except ClientError as error:
        raise ClientError(error.message, param=param) from None
    problem = COMPILERS.verdict(grammar, CHECK_S)
    if problem:
        raise ClientError(f"the grammar can't be used: {problem}", param=param)


def verdict(grammar: str) -> str:
    """Empty, or why it can't be obeyed. In this process: see `check`."""
    try:
        return _try(compiler_form(grammar))
    except ClientError as error:
        return error.message


@contextlib.contextmanager
def roomy_threads() -> Iterator[None]:
    """Threads started inside have `STACK_BYTES`; the pages are there when touched."""
    with _starting:
        before = threading.stack_size(STACK_BYTES)
        try:
            yield
        finally:
            threading.stack_size(before)


def shortened(message: str) -> str:
    """One message for a client: the beginning and the end, where reasons stand."""
    message = message.replace("<non-verbose/>", "").strip()
    if len(message) <= _MAX_MESSAGE:
        return message
    half = _MAX_MESSAGE // 2
    return f"{message[:half]} […] {message[-half:]}"


# -- reading and bounds


def _parse(grammar: str) -> tuple[str, Any]:
    if len(grammar) > MAX_BYTES or len(grammar.encode()) > MAX_BYTES:
        raise ClientError(f"the grammar has more than {MAX_BYTES} bytes")
    try:
        told = json.loads(grammar)
    except (ValueError, RecursionError):
        raise ClientError("the grammar is no JSON, or nested too deeply") from None
    if not isinstance(told, dict) or len(told) != 1:
        raise ClientError("a grammar is an object with exactly one key")
    ((kind, value),) = told.items()
    wanted = {JSON_SCHEMA: dict, JSON_OBJECT: bool, REGEX: str, LARK: str}.get(kind)
    if wanted is None:
        raise ClientError(f"there is no kind of grammar called {kind[:40]!r}")
    if not isinstance(value, wanted):
        raise ClientError(f"the value of {kind} has the wrong type")
    return kind, value


def _schema_form(schema: dict[str, Any]) -> str:
    return json.dumps({"grammars": [{"json_schema": schema_with_policy(schema)}]})


def _bound(document: Any) -> None:
    """Raises ClientError for a schema whose compilation could run away."""
    level: list[Any] = [document]
    nodes: list[Any] = []
    for _ in range(MAX_DEPTH):
        nodes += level
        level = [child for node in level for child in _children(node)]
        if not level:
            break
        if len(nodes) + len(level) > MAX_NODES:
            raise ClientError(f"the schema has more than {MAX_NODES} parts")
    else:
        raise ClientError(f"the schema is nested deeper than {MAX_DEPTH} levels")
    _bound_joins([node for node in nodes if isinstance(node, dict)])


def _bound_joins(objects: list[dict[str, Any]]) -> None:
    """Chains of references cost stack; texts that must match many patterns at once
    cost time that doubles with each."""
    references = {str(node["$ref"]) for node in objects if "$ref" in node}
    if len(references) > MAX_REFERENCES:
        raise ClientError(f"the schema refers to more than {MAX_REFERENCES} others")
    num_joins = sum(_num_joins(node) for node in objects)
    num_patterns = sum(not _PATTERNS.isdisjoint(node) for node in objects)
    if min(num_joins, num_patterns) > MAX_JOINS:
        raise ClientError(f"the schema joins more than {MAX_JOINS} patterns (allOf)")


def _num_joins(node: dict[str, Any]) -> int:
    told = node.get("allOf")
    listed = len(told) if isinstance(told, list) else 0
    return listed + ("$ref" in node and len(node) > 1)


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        if len(node) > MAX_MEMBERS:
            raise ClientError(f"an object has more than {MAX_MEMBERS} members")
        return list(node.values())
    return node if isinstance(node, list) else []


def _bound_lark(text: str) -> None:
    """Each rule has a line of its own; schemas inside are bounded like any other."""
    if text.count("\n") >= MAX_LINES:
        raise ClientError(f"the grammar has more than {MAX_LINES} lines")
    decoder = json.JSONDecoder()
    rules, *parts = text.split("%json")
    schemas = []
    for part in parts:
        try:
            schema, end = decoder.raw_decode(part.lstrip())
        except (ValueError, RecursionError):
            raise ClientError("after %json a JSON object is missing") from None
        schemas.append(schema)
        rules += part.lstrip()[end:]
    _bound(schemas)
    if rules.count("&") > MAX_JOINS:
        raise ClientError(f"the grammar joins more than {MAX_JOINS} patterns (&)")


# -- compiling for the check


class _Bytes:
    """The smallest tokenizer: a token for each byte, and an end."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([value]) for value in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


BYTES: Final = LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])


def _try(form: str) -> str:
    """Empty, or why it can't be compiled or begun."""
    matcher = LLMatcher(BYTES, form, log_level=0, limits=LIMITS)
    mask = matcher.compute_bitmask() if not matcher.is_error() else b""
    problem = matcher.get_error()
    if problem.startswith("NoExtensionBias") or not (problem or any(mask)):
        return "no text matches it"
    return shortened(problem)
