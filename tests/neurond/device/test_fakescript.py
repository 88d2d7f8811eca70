from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurond.device.fakescript import IM_END, IM_START, Script, script_for
from tests.neurond.device.rig import chat_ids


def script(text: str, max_tokens: int = 100, **options: Any) -> Script:
    return script_for(chat_ids(text), options, max_tokens)


def said(text: str, **options: Any) -> str:
    return bytes(script(text, **options).answer).decode()


def test_the_last_user_message_is_echoed() -> None:
    turn = chat_ids("first")
    assistant = (*b"no", IM_END, ord("\n"))
    both = script_for((*turn, *assistant, *chat_ids("second")), {}, 100)
    assert bytes(both.answer) == b"echo: second"


def test_a_prompt_without_turns_is_echoed_whole() -> None:
    assert bytes(script_for((*b"abc",), {}, 100).answer) == b"echo: abc"


def test_the_directive_is_not_echoed() -> None:
    assert said("hi [[fake step_ms=5]] there") == "echo: hi  there"


def test_answers_by_option_and_by_directive() -> None:
    assert said("x", tokens="count").startswith("w0 w1 w2 ")
    assert said("x", tokens=[72, 105]) == "Hi"
    assert said('[[fake text="two words"]]', tokens="count") == "two words"
    assert len(script("[[fake tokens=17]]").answer) == 17
    assert len(script("[[fake tokens=999999999999]]", 20).answer) == 20


def test_the_answer_ends_with_eos() -> None:
    assert script("x").token(len("echo: x")) == IM_END
    assert IM_START not in script("x").answer


def test_a_fault_is_due_at_its_token_in_its_attempts() -> None:
    always = script("[[fake fault=nan at=3]]")
    assert [always.fault_now(i, 0) for i in (2, 3, 4)] == ["", "nan", ""]
    assert always.fault_now(3, 7) == "nan"
    once = script("[[fake fault=nan at=3 attempts=1]]")
    assert (once.fault_now(3, 0), once.fault_now(3, 1)) == ("nan", "")


def test_an_unknown_fault_is_none() -> None:
    assert script("[[fake fault=meteor at=0]]").fault_now(0, 0) == ""


@pytest.mark.parametrize("text", ['[[fake text="open]]', "[[fake", "[[fakes a=1]]"])
def test_what_merely_looks_like_a_directive_changes_nothing(text: str) -> None:
    assert said(text) in (f"echo: {text}", "echo: ")


@given(st.text(max_size=200))  # never by chance a directive with a bad number
def test_any_text_has_the_same_script_every_time(text: str) -> None:
    assert script(text) == script(text)
