"""Noise in the prompts of agents, taken out or put where it breaks no reuse (S75).

Pure; front end and, for checking rules at the start, the supervisor. Some agents put a
line at the head of their prompt that differs with every request; what comes after it
can then never be reused. A rule finds such text with a regular expression in the first
characters of the first messages, and strips it or moves it behind what is stable.

A pattern is an operator's, the text a stranger's, and `re` backtracks. So a pattern is
admitted only when the worst text of `first_chars` characters can't make it take more
than MAX_STEPS: every way to match it is counted, from each place where it may begin.

Invariants: the same messages always come out the same; a message is changed only by a
rule that is told of it, and never by a match that the search was cut off in.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Literal

Message = Mapping[str, Any]

MAX_STEPS = 64_000_000
"""Of the matcher; the slowest text for a pattern so bounded takes well under 1 s."""
MAX_PATTERN_CHARS = 500
MAX_SECONDS = 0.05
"""Of processor time for one request; when it is spent, the rest goes unsearched."""
ROLES = ("system", "user", "assistant", "tool")
_parser: Any = import_module("re._parser")
_SINGLE = ("LITERAL", "NOT_LITERAL", "IN", "ANY", "AT")
_GROUPS = ("SUBPATTERN", "ATOMIC_GROUP")
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")


def _bounded(default: int, least: int, most: int, doc: str) -> Any:
    return field(default=default, metadata={"min": least, "max": most, "doc": doc})


@dataclass(frozen=True, slots=True)
class Rule:
    """`[[hygiene]]`. Without a pattern it turns the shipped rule of its name on or off.

    `to` is where `move` puts the text: behind the system prompt, or behind the last
    user message, which is new in every turn anyway.
    """

    name: str
    pattern: str = ""
    enabled: bool = True
    action: Literal["strip", "move"] = "strip"
    to: Literal["system", "last_user"] = "last_user"
    roles: tuple[str, ...] = ("system",)
    first_messages: int = _bounded(4, 1, 10_000, "how many messages are searched")
    first_chars: int = _bounded(4096, 1, 1 << 16, "of each message that are searched")

    def __post_init__(self) -> None:
        """Raises ValueError naming the key."""
        if unknown := [role for role in self.roles if role not in ROLES]:
            raise ValueError(f"roles: {unknown[0]!r} is none of {', '.join(ROLES)}")
        if self.pattern:
            _check(self.pattern, self.first_chars)
        elif self.name not in {rule.name for rule in SHIPPED}:
            raise ValueError(f"pattern is required: no shipped rule is {self.name!r}")


@dataclass(frozen=True, slots=True)
class Applied:
    """What a rule did to one message."""

    rule: str
    action: str
    message: int
    num_chars: int


@dataclass(frozen=True, slots=True)
class Cleaned:
    """`complete` is False when the time was spent before everything was searched."""

    messages: tuple[dict[str, Any], ...]
    applied: tuple[Applied, ...]
    complete: bool = True


class Hygiene:
    """The rules in force: those given, and the shipped ones that they don't name."""

    def __init__(
        self, rules: Iterable[Rule], *, clock: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock = clock
        self._rules = [
            (rule, re.compile(rule.pattern)) for rule in in_force(rules) if rule.enabled
        ]

    def clean(self, messages: Sequence[dict[str, Any]]) -> Cleaned:
        """The messages as they are rendered; those given stay as they are."""
        kept = list(messages)
        applied: list[Applied] = []
        deadline_s = self._clock() + MAX_SECONDS
        for rule, pattern in self._rules:
            taken: list[str] = []
            for index in range(min(rule.first_messages, len(kept))):
                if not _is_searched(kept[index], rule):
                    continue
                if self._clock() > deadline_s:
                    return Cleaned(tuple(messages), (), complete=False)
                content, found = _without(kept[index]["content"], pattern, rule)
                if found:
                    kept[index] = {**kept[index], "content": content}
                    num_chars = sum(map(len, found))
                    applied.append(Applied(rule.name, rule.action, index, num_chars))
                    taken += found
            if rule.action == "move" and taken:
                _append(kept, taken, rule.to)
        if not applied:
            return Cleaned(tuple(messages), ())
        return Cleaned(_without_empty(kept), tuple(applied))


def in_force(rules: Iterable[Rule]) -> list[Rule]:
    """The shipped rules as the given ones turn them, then the given ones' own."""
    known = {rule.name: rule for rule in SHIPPED}
    for rule in rules:
        if rule.pattern:
            known[rule.name] = rule
        else:
            known[rule.name] = replace(known[rule.name], enabled=rule.enabled)
    return list(known.values())


def _is_searched(message: Message, rule: Rule) -> bool:
    return message["role"] in rule.roles and type(message.get("content")) is str


def _without(text: str, pattern: re.Pattern[str], rule: Rule) -> tuple[str, list[str]]:
    """The text less what matches, and what that was."""
    end = min(len(text), rule.first_chars)
    kept, found, at = [], [], 0
    for match in pattern.finditer(text, 0, end):
        if match.end() == end < len(text) or not match[0]:
            continue  # it might go on behind what is searched
        kept.append(text[at : match.start()])
        found.append(match[0])
        at = match.end()
    return "".join([*kept, text[at:]]), found


def _append(messages: list[dict[str, Any]], texts: list[str], to: str) -> None:
    """Behind the message that `to` names; without one, behind the last message."""
    index = _last_system(messages) if to == "system" else _last_user(messages)
    message = messages[index]
    parts = [message.get("content") or "", *[text.strip() for text in texts]]
    messages[index] = {**message, "content": "\n\n".join([p for p in parts if p])}


def _last_system(messages: Sequence[Message]) -> int:
    """The last of those that the messages begin with."""
    index = 0
    while index < len(messages) and messages[index]["role"] == "system":
        index += 1
    return index - 1


def _last_user(messages: Sequence[Message]) -> int:
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    return users[-1] if users else -1


def _without_empty(messages: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """A system message of which nothing is left is no message."""
    left = [m for m in messages if m["role"] != "system" or m["content"].strip()]
    return tuple(left or messages)


def _check(pattern: str, num_chars: int) -> None:
    """Raises ValueError naming the key and what to do."""
    if len(pattern) > MAX_PATTERN_CHARS:
        raise ValueError(f"pattern is over {MAX_PATTERN_CHARS} characters")
    try:
        compiled = re.compile(pattern)
        num_worst = num_steps(pattern, num_chars)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"pattern is no regular expression: {error}") from error
    if compiled.search(""):
        raise ValueError("pattern matches the empty text")
    if num_worst > MAX_STEPS:
        raise ValueError(
            "pattern could take too long: begin it with \\A, bound what repeats"
            " ({0,80}), or lower first_chars"
        )


def num_steps(pattern: str, num_chars: int) -> int:
    """More than the matcher can take on a text of that many characters.

    Starts × ways to go on × what one way compares. Raises ValueError, re.error.
    """
    parsed = _parser.parse(pattern)
    num_compared = len(pattern) + min(int(parsed.getwidth()[0]), num_chars)
    return _num_starts(parsed, num_chars) * _num_ways(parsed, num_chars) * num_compared


def _num_starts(parsed: Any, num_chars: int) -> int:
    if not parsed:
        return 1
    op, argument = parsed[0]
    anchored = str(op) == "AT" and (
        str(argument) == "AT_BEGINNING_STRING"
        or (str(argument) == "AT_BEGINNING" and not parsed.state.flags & re.MULTILINE)
    )
    return 1 if anchored else num_chars + 1


def _num_ways(items: Any, num_chars: int) -> int:
    ways: int = 1
    for op, argument in items:
        ways = min(ways * _num_choices(str(op), argument, num_chars), 2 * MAX_STEPS)
    return ways


def _num_choices(op: str, argument: Any, num_chars: int) -> int:
    """How many ways there are to go on at this point. Raises ValueError."""
    if op in _SINGLE:
        return 1
    if op == "BRANCH":
        return sum(_num_ways(items, num_chars) for items in argument[1])
    if op in _GROUPS:
        inside = argument[-1] if op == "SUBPATTERN" else argument
        return _num_ways(inside, num_chars)
    if op not in _REPEATS:
        raise ValueError("pattern looks around or back, which can't be bounded")
    return _num_repeats(argument, num_chars)


def _num_repeats(repeat: Any, num_chars: int) -> int:
    least, most, items = repeat
    least, most = min(int(least), num_chars), min(int(most), num_chars)
    inner = _num_ways(items, num_chars)
    if inner == 1:
        return most - least + 1
    if most <= 1:
        return inner + 1
    most_ways: int = inner ** min(most + 1, 64)
    return min(most_ways, 2 * MAX_STEPS)


SHIPPED: tuple[Rule, ...] = (
    Rule("billing-line", r"\Ax-anthropic-billing-header:[^\n]*\n?"),
    Rule(
        "token-counter",
        r"<total_tokens>[^<]{0,64}</total_tokens>\n?",
        roles=("system", "user"),
    ),
    Rule(
        "current-date",
        r"(?m)^Today's date(?: is|:)[^\n]{0,80}\n?",
        enabled=False,
        action="move",
        first_chars=2048,
    ),
)
"""On: what says nothing to a model. Off: what does, and is moved to where it is new."""
