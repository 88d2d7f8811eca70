from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from llguidance import LLMatcher

from ipc.errors import ClientError
from neurond import grammar


def refusal(text: str, param: str | None = None) -> ClientError:
    with pytest.raises(ClientError) as caught:
        grammar.check(text, param)
    return caught.value


def schema(**keys: Any) -> str:
    return grammar.write(grammar.JSON_SCHEMA, keys)


@pytest.mark.parametrize(
    "text",
    [
        grammar.write(grammar.JSON_OBJECT, True),
        schema(type="object", properties={"a": {"type": "integer"}}, required=["a"]),
        schema(type="string", pattern="^[a-z]+$"),
        schema(**{"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}),
        schema(type="string", **{"x-guidance": {"whitespace_flexible": False}}),
        grammar.write(grammar.REGEX, "^[0-9]{4}-[0-9]{2}$"),
        grammar.write(grammar.LARK, 'start: "a" b\nb: %json {"type": "integer"}'),
    ],
)
def test_a_good_grammar_passes(text: str) -> None:
    grammar.check(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[]", "exactly one key"),
        ('{"regex": "a", "lark": "b"}', "exactly one key"),
        ('{"ebnf": "a"}', "'ebnf'"),
        ('{"regex": 7}', "wrong type"),
        (schema(type="strin"), "Invalid type: strin"),
        (schema(type="string", pattern="("), "unclosed group"),
        (schema(type="integer", minimum=5, maximum=1), "minimum (5) is greater"),
        (schema(**{"not": {}}), "Unimplemented keys"),
        (
            schema(**{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
            "no text matches",
        ),
        (grammar.write(grammar.REGEX, "(?=a)b"), "look-around"),
        (grammar.write(grammar.LARK, "start: foo"), 'unknown name: "foo"'),
        (grammar.write(grammar.LARK, "start: %json 7 7"), "%json"),
        (grammar.write(grammar.LARK, '{"grammars": []}'), "expecting rule"),
    ],
)
def test_a_bad_grammar_is_a_400_in_the_compilers_words(text: str, words: str) -> None:
    error = refusal(text, "response_format")
    assert words in error.message
    assert (error.status, error.param) == (400, "response_format")


def chain(length: int) -> dict[str, Any]:
    """Each definition is an object that needs the next."""
    links: dict[str, Any] = {
        f"a{n}": {"properties": {"x": {"$ref": f"#/$defs/a{n + 1}"}}, "required": ["x"]}
        for n in range(length)
    }
    return {"$ref": "#/$defs/a0", "$defs": links | {f"a{length}": {"type": "null"}}}


def nested(depth: int) -> Any:
    return {"items": nested(depth - 1)} if depth else {}


def rules(length: int, name: str = "a") -> str:
    lines = [f'{name}{n}: ({name}{n + 1} "x")+ | "y"' for n in range(length)]
    return "\n".join([f"start: {name}0", *lines, f'{name}{length}: "z"'])


PATTERNS = [{"type": "string", "pattern": f".*{n}.*"} for n in range(30)]
HOSTILE = {
    "bytes": grammar.write(grammar.REGEX, "a" * 300_000),
    "depth": schema(**nested(80)),
    "deeper than Python reads": '{"json_schema":'
    + '{"a":' * 20_000
    + "1"
    + "}" * 20_001,
    "members": schema(properties={f"p{n}": {} for n in range(20_000)}),
    "parts": schema(enum=list(range(30_000))),
    "chain of references": schema(**chain(600)),
    "chain in Lark": grammar.write(grammar.LARK, rules(5_000)),
    "chain inside Lark": grammar.write(
        grammar.LARK,
        "start: %json " + json.dumps(chain(600)).replace("$r", "\\u0024r"),
    ),
    "patterns joined": schema(allOf=PATTERNS),
    "patterns joined in Lark": grammar.write(
        grammar.LARK, "start: A\nA: " + " & ".join(f"/.*{n}.*/" for n in range(30))
    ),
    "patterns joined by reference": schema(
        **{
            "$ref": "#/$defs/a0",
            "$defs": {
                f"a{n}": {**PATTERNS[n], "$ref": f"#/$defs/a{n + 1}"} for n in range(29)
            }
            | {"a29": PATTERNS[29]},
        }
    ),
    "branches": schema(
        allOf=[
            {"anyOf": [{"properties": {f"a{n}{m}": {"const": n}}} for m in range(4)]}
            for n in range(12)
        ]
    ),
}


WORDS = {
    "bytes": "bytes",
    "depth": "nested deeper",
    "deeper than Python reads": "nested too deeply",
    "members": "members",
    "parts": "parts",
    "chain of references": "refers to more",
    "chain in Lark": "lines",
    "chain inside Lark": "refers to more",
    "patterns joined": "joins more",
    "patterns joined in Lark": "joins more",
    "patterns joined by reference": "joins more",
    "branches": "too large",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_s04_a_hostile_grammar_is_refused_at_once(name: str) -> None:
    began_s = time.process_time()
    error = refusal(HOSTILE[name])
    assert time.process_time() - began_s < 1.0
    assert error.status == 400
    assert WORDS[name] in error.message


def test_the_longest_chains_that_are_allowed_fit_the_stack() -> None:
    """In a process of its own: without room it would be the end of it."""
    texts = [
        schema(**chain(grammar.MAX_REFERENCES - 1)),
        grammar.write(grammar.LARK, rules(grammar.MAX_LINES - 2)),
        grammar.write(grammar.LARK, rules(grammar.MAX_LINES - 2, "A")),
    ]
    code = "import sys, json; from neurond import grammar\n"
    code += "[grammar.check(text) for text in json.load(sys.stdin)]"
    run = [sys.executable, "-c", code]
    done = subprocess.run(
        run, input=json.dumps(texts).encode(), timeout=60, check=False
    )
    assert done.returncode == 0


def test_messages_are_short_and_keep_their_reason() -> None:
    error = refusal(grammar.write(grammar.REGEX, "a" * 90_000 + "("))
    assert len(error.message) < 700
    assert error.message.startswith("the grammar can't be used")
    assert "[…]" in error.message


def test_threads_started_elsewhere_keep_their_stack() -> None:
    before = threading.stack_size()
    grammar.check(grammar.write(grammar.JSON_OBJECT, True))
    assert threading.stack_size() == before


def accepts(text: str, document: str) -> bool:
    form = grammar.compiler_form(text)
    matcher = LLMatcher(grammar.BYTES, form, log_level=0, limits=grammar.LIMITS)
    return matcher.consume_tokens([*document.encode()]) and matcher.is_accepting()


@pytest.mark.parametrize(
    "document",
    [
        '{"a":1}',
        '{"a": 1, "b": [1, 2]}',
        '{\n  "a": {\n    "b": []\n  }\n}',
        '{\n\t"a": 1\n}',
    ],
)
def test_white_space_is_as_models_write_it(document: str) -> None:
    assert accepts(grammar.write(grammar.JSON_OBJECT, True), document)


@pytest.mark.parametrize("document", ["{  }", "{\n\n}", " {}", "[1]", "1", '{"a":1}}'])
def test_white_space_never_runs_on_and_an_object_is_an_object(document: str) -> None:
    assert not accepts(grammar.write(grammar.JSON_OBJECT, True), document)


def test_additional_properties_are_as_given() -> None:
    properties = {"a": {"type": "integer"}}
    open_ended = schema(type="object", properties=properties)
    closed = schema(type="object", properties=properties, additionalProperties=False)
    assert accepts(open_ended, '{"a":1,"b":2}')
    assert not accepts(closed, '{"a":1,"b":2}')


def test_a_schema_in_lark_can_have_the_same_white_space() -> None:
    inner = json.dumps(grammar.schema_with_policy({"type": "object"}))
    text = grammar.write(grammar.LARK, f'start: "<" %json {inner} ">"')
    assert accepts(text, '<{"a": 1}>')
    assert not accepts(text, '<{  "a": 1}>')


def test_the_module_leaves_torch_unloaded() -> None:
    code = "import sys, neurond.grammar; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
