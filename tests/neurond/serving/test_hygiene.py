"""Rules over messages: what they take, where they put it, what they can cost."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurond.serving import hygiene
from neurond.serving.hygiene import SHIPPED, Cleaned, Hygiene, Rule

BILLING = (
    "x-anthropic-billing-header: cc_version=2.1.330.4f2; cc_entrypoint=cli; cch=1;"
)
SLOWEST_S = 1.0


def says(role: str, content: str | None) -> dict[str, Any]:
    return {"role": role, "content": content}


def clean(messages: list[dict[str, Any]], *rules: Rule) -> Cleaned:
    return Hygiene(rules).clean(messages)


def contents(cleaned: Cleaned) -> list[str]:
    return [message["content"] for message in cleaned.messages]


def test_the_billing_line_is_taken_out_as_shipped() -> None:
    messages = [says("system", f"{BILLING}\nYou are an agent."), says("user", "hi")]
    cleaned = clean(messages)
    assert contents(cleaned) == ["You are an agent.", "hi"]
    (applied,) = cleaned.applied
    assert (applied.rule, applied.message) == ("billing-line", 0)
    assert applied.num_chars == len(BILLING) + 1
    assert messages[0]["content"].startswith(BILLING)  # those given stay as they are


def test_a_message_of_billing_alone_is_no_message() -> None:
    cleaned = clean([says("system", BILLING), says("system", "a"), says("user", "b")])
    assert contents(cleaned) == ["a", "b"]


def test_a_billing_line_that_a_user_writes_is_the_users() -> None:
    assert clean([says("user", BILLING)]).applied == ()


def test_a_billing_line_further_down_is_text() -> None:
    assert clean([says("system", f"Never print this:\n{BILLING}")]).applied == ()


def test_token_counters_are_taken_out_of_the_first_messages_only() -> None:
    counter = "<total_tokens>1234 tokens left</total_tokens>\n"
    first = [says("system", f"{counter}S"), says("user", f"U {counter}")]
    later = [says("assistant", f"A{counter}"), *[says("user", counter)] * 3]
    cleaned = clean([*first, *later])
    assert contents(cleaned)[:3] == ["S", "U ", f"A{counter}"]
    assert contents(cleaned)[-1] == counter


def test_nothing_else_is_done_as_shipped() -> None:
    messages = [says("system", "Today's date: 2026-11-21\nS"), says("user", "hi")]
    cleaned = clean(messages)
    assert cleaned == Cleaned(tuple(messages), ())


def test_a_shipped_rule_is_turned_on_and_off_by_its_name() -> None:
    date = "Today's date: 2026-11-21"
    messages = [says("system", f"{date}\nS"), says("user", "a"), says("user", "b")]
    cleaned = clean(messages, Rule("current-date"))
    assert contents(cleaned) == ["S", "a", f"b\n\n{date}"]
    off = [Rule("billing-line", enabled=False)]
    assert clean([says("system", BILLING)], *off).applied == ()


def test_moved_text_goes_behind_the_system_prompt_or_the_last_user() -> None:
    messages = [says("system", "NOISE one"), says("system", "two"), says("user", "u")]
    system, last = (
        contents(clean(messages, Rule("n", r"\ANOISE ", action="move", to=to)))  # type: ignore[arg-type]
        for to in ("system", "last_user")
    )
    assert system == ["one", "two\n\nNOISE", "u"]
    assert last == ["one", "two", "u\n\nNOISE"]


def test_what_has_no_place_to_go_is_not_lost() -> None:
    rule = Rule("n", r"\ANOISE ", action="move", to="last_user")
    assert contents(clean([says("system", "NOISE one")], rule)) == ["one\n\nNOISE"]


def test_a_match_that_may_go_on_behind_what_is_searched_is_left_alone() -> None:
    rule = Rule("n", r"\AN[^\n]*", first_chars=10)
    for text, taken in (("N" * 9, 1), ("N" * 10, 1), ("N" * 11, 0), ("NN\n" * 9, 1)):
        assert len(clean([says("system", text)], rule).applied) == taken


def test_messages_without_text_and_of_other_roles_are_passed_over() -> None:
    rule = Rule("n", "NOISE", roles=("tool",))
    messages = [says("assistant", None), says("user", "NOISE"), says("tool", "NOISE!")]
    assert contents(clean(messages, rule)) == [None, "NOISE", "!"]


def test_when_the_time_is_spent_all_goes_through_unchanged() -> None:
    ticks = iter(range(100))
    messages = [says("system", f"{BILLING}\nS"), says("system", "T")]
    cleaned = Hygiene((), clock=lambda: float(next(ticks))).clean(messages)
    assert cleaned == Cleaned(tuple(messages), (), complete=False)


@pytest.mark.parametrize(
    ("pattern", "says_why"),
    [
        ("(", "no regular expression"),
        ("a" * 501, "over 500"),
        ("a*", "matches the empty text"),
        (r"(a+)+$", "too long"),
        (r"(a|a)*b", "too long"),
        (r"(?:a|aa){40}b", "too long"),
        ("a?" * 30 + "a" * 30, "too long"),
        (r"a*a*a*b", "too long"),
        (r"(?=a)b", "looks around"),
        (r"(a)\1", "looks around"),
    ],
)
def test_a_pattern_that_is_wrong_or_could_hang_is_refused_by_its_key(
    pattern: str, says_why: str
) -> None:
    with pytest.raises(ValueError, match=r"pattern.*") as refused:
        Rule("n", pattern)
    assert says_why in str(refused.value)


def test_a_rule_without_a_pattern_needs_a_shipped_one_of_its_name() -> None:
    with pytest.raises(ValueError, match="no shipped rule is 'nobody'"):
        Rule("nobody")
    with pytest.raises(ValueError, match="roles: 'robot'"):
        Rule("n", "x", roles=("robot",))


# a text for each that makes the matcher try everything
SLOW = (
    (r"\A[^\n]*" + "a" * 300 + "b", "a", 1 << 16),
    (r"a{0,60}a{0,60}b", "a", 1000),
    (r"\Aa*a*b", "a", 2500),
    ("(?:a|a)" * 10 + "b", "a", 600),
    (r"a*b", "a", 3900),
    (r"(?:ab?){0,14}c", "a", 64),
)


@pytest.mark.parametrize(("pattern", "char", "num_chars"), SLOW)
def test_the_slowest_that_is_admitted_ends_soon_on_a_megabyte(
    pattern: str, char: str, num_chars: int
) -> None:
    rule = Rule("n", pattern, first_chars=num_chars)
    assert hygiene.num_steps(pattern, num_chars) > hygiene.MAX_STEPS / 4
    before_s = time.thread_time()
    clean([says("system", char * (1 << 20))], rule)
    assert time.thread_time() - before_s < SLOWEST_S


@pytest.mark.parametrize("rule", SHIPPED, ids=lambda rule: rule.name)
def test_shipped_rules_are_quick_on_text_made_against_them(rule: Rule) -> None:
    heads = ("x-anthropic-billing-header:", "<total_tokens>", "Today's date: ", "\n")
    before_s = time.thread_time()
    for head in heads:
        Hygiene([rule]).clean([says("system", head * 40_000)])
    assert time.thread_time() - before_s < SLOWEST_S


_PIECES = st.sampled_from(
    ["a", "b", ".", "[ab]", "a*", "b+?", "a{0,3}", "(?:ab)?", "(a|b)", "(?:a|ab){0,2}"]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_PIECES, min_size=1, max_size=8), st.text("ab", max_size=40))
def test_whatever_is_admitted_ends_soon(pieces: list[str], text: str) -> None:
    pattern = "".join(pieces)
    try:
        rule = Rule("n", pattern, first_chars=40)
    except ValueError:
        return
    before_s = time.thread_time()
    cleaned = clean([says("system", text)], rule)
    assert time.thread_time() - before_s < SLOWEST_S
    removed = sum(applied.num_chars for applied in cleaned.applied)
    whole = sum(len(match[0]) for match in re.finditer(pattern, text))
    assert removed <= whole
