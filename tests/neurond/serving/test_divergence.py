"""Which prompt a new one continues, and where it stopped doing so."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurond.serving import divergence
from neurond.serving.divergence import (
    EARLY_MESSAGES,
    MAX_PROMPTS,
    Mark,
    Prompt,
    Recent,
    num_shared,
    prompt_of,
)

KEY = ("m", "")
SYSTEM = "You are an agent with many tools. " * 20
QUESTION = "What does this repository do? " * 4


def says(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def rendered(*messages: dict[str, Any], **more: Any) -> Prompt:
    """Bytes as ids, ChatML as template."""
    text = "".join(f"<{m['role']}>{m['content']}</>" for m in messages) + "<assistant>"
    return prompt_of(list(text.encode()), messages, **more)


SYS, USER = says("system", SYSTEM), says("user", QUESTION)
ANSWER, MORE = says("assistant", "It serves models."), says("user", "How? " * 30)


def found(before: Prompt, now: Prompt) -> divergence.Divergence | None:
    recent = Recent()
    assert recent.add(KEY, before) is None
    return recent.add(KEY, now)


def test_the_next_turn_of_a_conversation_is_no_divergence() -> None:
    assert found(rendered(SYS, USER), rendered(SYS, USER, ANSWER, MORE)) is None


def test_noise_at_the_head_is_found_at_its_token_and_message() -> None:
    before = rendered(says("system", f"id 1\n{SYSTEM}"), USER)
    now = rendered(says("system", f"id 2\n{SYSTEM}"), USER, ANSWER, MORE)
    told = found(before, now)
    assert told is not None
    assert (told.shared, told.message, told.role) == (len("<system>id "), 0, "system")
    assert (told.total, told.lost) == (now.num_tokens, before.num_tokens - told.shared)


def test_an_earlier_message_that_was_rewritten_is_found() -> None:
    other = says("assistant", "It served models.")
    last = says("user", "And then? " * 10)
    told = found(
        rendered(SYS, USER, ANSWER, MORE), rendered(SYS, USER, other, MORE, last, last)
    )
    assert told is not None
    assert (told.message, told.role) == (2, "assistant")


def test_messages_that_were_dropped_are_found() -> None:
    told = found(
        rendered(SYS, USER, ANSWER, MORE, ANSWER, MORE), rendered(SYS, USER, MORE, MORE)
    )
    assert told is not None
    assert told.message == 2


def test_another_answer_to_the_last_message_is_no_divergence() -> None:
    assert found(rendered(SYS, USER, ANSWER, MORE), rendered(SYS, USER, ANSWER)) is None
    edited = says("user", "Why? " * 30)
    assert (
        found(rendered(SYS, USER, ANSWER, MORE), rendered(SYS, USER, ANSWER, edited))
        is None
    )


def test_another_conversation_with_the_same_agent_is_none() -> None:
    other = says("user", "Fix the tests. " * 8)
    assert found(rendered(SYS, USER, ANSWER, MORE), rendered(SYS, other)) is None


def test_noise_in_the_users_first_message_is_found() -> None:
    """What follows it shows that it is the same conversation."""
    first, later = (says("user", f"{n} o'clock. {QUESTION}") for n in (1, 2))
    told = found(
        rendered(SYS, first, ANSWER, MORE, ANSWER, MORE),
        rendered(SYS, later, ANSWER, MORE, ANSWER, MORE, ANSWER, MORE),
    )
    assert told is not None
    assert (told.message, told.role) == (1, "user")


def test_only_early_messages_tell_whose_conversation_it_is() -> None:
    """Beyond them a comparison with hundreds of prompts would hold everybody up."""
    ours, others = (
        [says("user", f"{who} {n} {QUESTION}") for n in range(EARLY_MESSAGES)]
        for who in ("we", "they")
    )
    assert found(rendered(*ours, ANSWER, MORE), rendered(*others, ANSWER, MORE)) is None
    alike = [*others[:-1], ours[-1]]
    assert found(rendered(*ours, ANSWER), rendered(*alike, ANSWER)) is not None


def test_a_prompt_of_many_messages_is_compared_by_few_of_them() -> None:
    """Marks that count how often they are looked at, not the time that it takes."""

    class Counted(Mark):
        looks = 0

        def __eq__(self, other: object) -> bool:
            Counted.looks += 1
            return super().__eq__(other)

        __hash__ = Mark.__hash__

    def counted(who: int) -> Prompt:
        made = prompt_of(range(who, who + 4000), [])
        marks = [Counted("user", who * 5000 + n, 9) for n in range(4000)]
        return Prompt(made.ids, tuple(marks), 0)

    recent = Recent()
    for who in range(32):
        recent.add(KEY, counted(who))
    Counted.looks = 0
    recent.add(KEY, counted(99))
    assert Counted.looks <= 32


def test_a_title_request_about_the_same_message_is_another_conversation() -> None:
    title = says("system", "Write a title of three words for this.")
    before = rendered(SYS, USER)
    assert found(before, rendered(title, USER, USER, USER, USER)) is None


def test_changed_tools_and_templates_are_named_as_such() -> None:
    tool = {"type": "function", "function": {"name": "read"}}
    before, now = rendered(SYS, USER), rendered(SYS, USER, ANSWER, MORE, tools=[tool])
    ids = list(range(1000, 1000 + now.num_tokens))
    with_tools = Prompt(prompt_of(ids, ()).ids, now.marks, now.tools)
    told = found(before, with_tools)
    assert told is not None
    assert (told.message, told.role, told.shared) == (None, "tools", 0)
    told = found(before, Prompt(with_tools.ids, now.marks, before.tools))
    assert told is not None
    assert told.role == "template"


def test_of_branches_of_one_conversation_the_one_that_is_continued_counts() -> None:
    recent = Recent()
    left = says("assistant", "left " * 20)
    right = says("assistant", "right " * 20)
    recent.add(KEY, rendered(SYS, USER, left, MORE, left, MORE))
    recent.add(KEY, rendered(SYS, USER, right, MORE, left, MORE))
    again = rendered(SYS, USER, left, MORE, left, MORE, left, MORE)
    assert recent.add(KEY, again) is None


@pytest.mark.parametrize("other", [("n", ""), ("m", "somebody")])
def test_models_and_principals_are_kept_apart(other: tuple[str, str]) -> None:
    recent = Recent()
    recent.add(KEY, rendered(says("system", f"1 {SYSTEM}"), USER))
    assert recent.add(other, rendered(says("system", f"2 {SYSTEM}"), USER)) is None


def test_short_prompts_are_passed_over() -> None:
    recent = Recent()
    recent.add(KEY, rendered(says("user", "hi")))
    assert len(recent) == 0


def test_memory_is_bounded_in_prompts_and_tokens() -> None:
    recent = Recent()
    for number in range(MAX_PROMPTS + 50):
        user = says("user", f"{number} {QUESTION}")
        recent.add(KEY, rendered(SYS, user))
    assert len(recent) == MAX_PROMPTS
    assert recent.num_tokens == sum(p.num_tokens for _, p in recent._prompts.values())
    ids = list(range(900_000))
    for number in range(4):
        recent.add(KEY, prompt_of(ids, [says("user", str(number))]))
    assert recent.num_tokens <= divergence.MAX_TOKENS


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_halving_finds_what_counting_finds(left: list[int], right: list[int]) -> None:
    counted = 0
    while counted < min(len(left), len(right)) and left[counted] == right[counted]:
        counted += 1
    assert num_shared(prompt_of(left, ()).ids, prompt_of(right, ()).ids) == counted
