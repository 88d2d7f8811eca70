"""What is asked for during a drill of faults: a few requests of every kind, each of
which has one right answer, to be asked again and again.

Pure. `kind` says what matters when an answer is compared: what a grammar has "forced"
is the same text whatever the numerics are; the others are where bits don't change.
"""

from __future__ import annotations

from typing import Any

from tests.drills.traffic import CHAT, COMPLETIONS, EMBEDDINGS, SCHEMA, Ask, Profile

FORCED = "(the same words all over again ){3}end"
_STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
_GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
_DRAWN: dict[str, Any] = {"temperature": 1, "seed": 7, "ignore_eos": True}
_TOOL = {"name": "paint", "description": "Paint it.", "parameters": SCHEMA}
_TOOLS = {
    "tools": [{"type": "function", "function": _TOOL}],
    "tool_choice": "required",
}
_JSON = {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}
_CHATS: dict[str, dict[str, Any]] = {
    "greedy": _GREEDY | _STREAM,
    "whole": dict(_GREEDY),
    "drawn": _DRAWN | _STREAM,
    "scored": _DRAWN | {"n": 2, "logprobs": True, "top_logprobs": 2},
    "two": _DRAWN | {"n": 2, "logprobs": True} | _STREAM,
    "stopped": {"temperature": 1, "seed": 3, "stop": ["q", "zz"]} | _STREAM,
    "penal": _DRAWN | {"frequency_penalty": 1.0, "min_tokens": 20} | _STREAM,
    "forced": {"temperature": 1, "seed": 5, "guided_regex": FORCED} | _STREAM,
    "tool": {"temperature": 1, "seed": 5, **_TOOLS, **_STREAM},
    "schema": {"temperature": 1, "seed": 6, **_JSON},
}
# a grammar must be able to end, and what it writes in single bytes is long
_LONG = {"forced": 160, "tool": 200, "schema": 200}
_TEXTS: dict[str, dict[str, Any]] = {
    "echo": _GREEDY | {"echo": True, "logprobs": 1} | _STREAM,
    "pair": _DRAWN | {"prompt": ["one prompt", "and another"]},
}
KINDS = (*_CHATS, *_TEXTS, "vector")


def catalogue(profile: Profile, num_tokens: int) -> list[Ask]:
    """One of each kind; `num_tokens` is how long most answers are."""
    chats = [
        Ask(
            kind,
            CHAT,
            {
                "model": profile.model,
                "messages": [{"role": "user", "content": f"Tell me about {kind}."}],
                "max_tokens": _LONG.get(kind, num_tokens),
                **fields,
            },
        )
        for kind, fields in _CHATS.items()
    ]
    texts = [
        Ask(
            kind,
            COMPLETIONS,
            {
                "model": profile.model,
                "prompt": f"A text for {kind}, and what follows it",
                "max_tokens": num_tokens,
                **fields,
            },
        )
        for kind, fields in _TEXTS.items()
    ]
    many = [f"text number {number}" for number in range(12)]
    vectors = Ask("vector", EMBEDDINGS, {"model": profile.vectors, "input": many})
    return [*chats, *texts, vectors]
