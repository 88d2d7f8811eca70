"""What clients of a soak ask for: random requests, some asked before, some wrong.

Pure but for its own memory: requests and answers that may come again, conversations
that may go on. What an answer must be like is `judge`'s to say.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

CHAT, COMPLETIONS, EMBEDDINGS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
)
SALTS = ("", "", "alice", "bob", "carol")
CALLERS = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4")
"""Principals, of which the first asks most."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "sure": {"type": "boolean"},
    },
    "required": ["colour", "count", "sure"],
    "additionalProperties": False,
}
REGEX = r"[a-f]{3,8}-[0-9]{2,4}"
_TOOL = {"name": "paint", "description": "Paint it.", "parameters": SCHEMA}
_SHAPES: tuple[dict[str, Any], ...] = (
    {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    {"guided_regex": REGEX},
    {"guided_choice": ["yes", "no", "perhaps"]},
    {
        "tools": [{"type": "function", "function": _TOOL}],
        "tool_choice": "required",
    },
)
_TOPICS = ("the sea", "bees", "winter", "clocks", "glass", "rivers", "ships", "bread")
_MOST_KEPT = 48


@dataclass(frozen=True, slots=True)
class Profile:
    """A model under soak. `words` is the longest prompt's; `obeys`: grammars bind what
    it writes; `alike`: the share of answers to a request asked again that must be what
    they were, 1.0 = to the last bit."""

    model: str
    vectors: str
    rate: float
    words: int
    most_tokens: int
    obeys: bool
    alike: float


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `status` is what it must be answered with, if not with 503 or 429;
    `is_exact`: greedy or seeded; `before`: its outcome when it was asked before;
    `caller`: the address that it comes from."""

    kind: str
    path: str
    body: Any
    status: int = 200
    is_exact: bool = False
    before: Any = None
    caller: str = CALLERS[0]

    @property
    def num_choices(self) -> int:
        prompts = self.body.get("prompt")
        many = isinstance(prompts, list) and isinstance(prompts[0], str)
        n: int = self.body.get("n", 1)
        return n * (len(prompts) if many else 1)

    @property
    def streams(self) -> bool:
        return isinstance(self.body, dict) and bool(self.body.get("stream"))

    @property
    def has_shape(self) -> bool:
        return any(key in self.body for shape in _SHAPES for key in shape)


@dataclass(slots=True)
class Traffic:
    """`seen` has answers of requests that must be answered alike each time."""

    profile: Profile
    rng: random.Random
    seen: list[tuple[Ask, Any]] = field(default_factory=list)
    talks: list[tuple[list[Any], str]] = field(default_factory=list)

    def next(self) -> Ask:
        ways = (self._again, self._new, self._turn, self._raw, self._vector)
        more = (self._wrong, self._oversize)
        way = self.rng.choices((*ways, *more), (20, 40, 12, 12, 6, 7, 3))[0]
        caller = self.rng.choices(CALLERS, (6, 2, 1, 1))[0]
        return replace(way(), caller=caller)

    def learn(self, ask: Ask, outcome: Any, text: str) -> None:
        """A whole answer: it may be asked for again, or the talk go on."""
        if ask.is_exact:
            self._keep(self.seen, (ask, outcome))
        if ask.path == CHAT and ask.status == 200 and text and not ask.has_shape:
            said = {"role": "assistant", "content": text}
            self._keep(self.talks, ([*ask.body["messages"], said], _salt(ask)))

    def _keep(self, kept: list[Any], item: Any) -> None:
        if len(kept) < _MOST_KEPT:
            kept.append(item)
        elif self.rng.random() < 0.05:
            kept[self.rng.randrange(_MOST_KEPT)] = item

    # -- kinds of requests

    def _again(self) -> Ask:
        if not self.seen:
            return self._new()
        ask, outcome = self.rng.choice(self.seen)
        return Ask("again", ask.path, ask.body, 200, before=outcome)

    def _new(self) -> Ask:
        return self._chat("new", [_user(self._text())], self._any_salt())

    def _turn(self) -> Ask:
        """The next one of a talk; its beginning was computed before."""
        if not self.talks:
            return self._new()
        messages, salt = self.rng.choice(self.talks)
        if len(messages) > 6:
            return self._new()
        return self._chat("turn", [*messages, _user(self._text(most=12))], salt)

    def _chat(self, kind: str, messages: list[Any], salt: str) -> Ask:
        body = {"messages": messages, **self._drawn(), **self._extras()}
        if salt:
            body["cache_salt"] = salt
        return self._ask(kind, CHAT, body)

    def _raw(self) -> Ask:
        rng = self.rng
        prompt: Any = self._text(most=40)
        if rng.random() < 0.3:
            prompt = [prompt, self._text(most=20)]
        elif rng.random() < 0.3:
            prompt = [rng.randrange(1, 250) for _ in range(rng.randint(1, 60))]
        body = {"prompt": prompt, **self._drawn(), "echo": rng.random() < 0.4}
        if rng.random() < 0.4:
            body["logprobs"] = rng.randint(0, 3)
        return self._ask("raw", COMPLETIONS, body)

    def _vector(self) -> Ask:
        texts = [self._text(most=30) for _ in range(self.rng.randint(1, 5))]
        body = {"model": self.profile.vectors, "input": texts}
        return Ask("vector", EMBEDDINGS, body, 200, is_exact=True)

    def _oversize(self) -> Ask:
        body = {"messages": [_user("word " * 6000)], "max_tokens": 4}
        return Ask("oversize", CHAT, {"model": self.profile.model, **body}, 400)

    def _wrong(self) -> Ask:
        path, status, fields = self.rng.choice(_WRONG)
        if isinstance(fields, bytes):
            return Ask("wrong", path, fields, status)
        body = {"model": self.profile.model, "messages": [_user("hi")], **fields}
        return Ask("wrong", path, body, status)

    # -- their parts

    def _ask(self, kind: str, path: str, body: dict[str, Any]) -> Ask:
        repeats = body["temperature"] == 0 or "seed" in body
        if self.rng.random() < 0.6:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        body["model"] = self.profile.model
        return Ask(kind, path, body, 200, is_exact=repeats)

    def _drawn(self) -> dict[str, Any]:
        """How its tokens are drawn, and how many."""
        rng = self.rng
        fields: dict[str, Any] = {
            "temperature": rng.choice((0, 0, 0.7, 1.3)),
            "max_tokens": rng.randint(1, self.profile.most_tokens),
        }
        if rng.random() < 0.5:
            fields["seed"] = rng.randrange(1000)
        if rng.random() < 0.2:
            fields |= {"top_p": 0.9, "top_k": 20, "presence_penalty": 0.5}
        if rng.random() < 0.15:
            fields["n"] = rng.randint(2, 3)
        if rng.random() < 0.15:
            fields["stop"] = rng.choice((["e", "zz"], "the", [" a", "."]))
        return fields

    def _extras(self) -> dict[str, Any]:
        rng = self.rng
        fields: dict[str, Any] = {}
        if rng.random() < 0.25:
            fields |= rng.choice(_SHAPES)
        elif rng.random() < 0.2:
            fields["ignore_eos"] = True
        if rng.random() < 0.2:
            fields |= {"logprobs": True, "top_logprobs": rng.randint(0, 4)}
        return fields

    def _text(self, most: int = 0) -> str:
        """Short ones are many, long ones few."""
        longest = most or self.profile.words
        count = min(longest, 1 + int(self.rng.expovariate(6 / longest)))
        words = [f"{self.rng.choice(_TOPICS)} {self.rng.randrange(50)}"]
        words += [self.rng.choice(_TOPICS) for _ in range(count // 2)]
        return "Tell me about " + " and ".join(words)

    def _any_salt(self) -> str:
        return self.rng.choice(SALTS)


_WRONG: tuple[tuple[str, int, Any], ...] = (
    (CHAT, 400, {"temperature": -1}),
    (CHAT, 400, {"messages": []}),
    (CHAT, 400, {"n": 999}),
    (CHAT, 400, {"logprobs": True, "top_logprobs": 99}),
    (CHAT, 400, {"guided_regex": "["}),
    (CHAT, 400, {"logit_bias": {"99999999": 1}}),
    (CHAT, 400, {"max_tokens": -5}),
    (CHAT, 400, {"tools": "hammer"}),
    (CHAT, 400, b'{"model": "m", "messages": [}'),
    (CHAT, 404, {"model": "nobody"}),
    (COMPLETIONS, 400, {"prompt": [99_999_999], "messages": None}),
    (COMPLETIONS, 400, {"prompt": "x", "messages": None, "suffix": "y"}),
    (EMBEDDINGS, 422, {"input": "hi"}),
    (EMBEDDINGS, 400, {"input": []}),
)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _salt(ask: Ask) -> str:
    salt: str = ask.body.get("cache_salt", "")
    return salt
