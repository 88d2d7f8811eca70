"""Noise in prompts over HTTP: taken out, counted, told; what breaks reuse is said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness import Node
from tests.httpclient import CHAT, Http

SYSTEM = "You are an agent with many tools. " * 20
QUESTION = "What does this repository do? " * 4
RULES = [
    {"name": "session-line", "pattern": r"\ASession: \w+\n"},
    {"name": "clock", "pattern": r"\AClock: \d+\n", "action": "move"},
    {"name": "token-counter", "enabled": False},
]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("prompts")
    with Node(folder, config={"hygiene": RULES}) as running:
        yield running


def turn(node: Node, head: str, *more: str, question: str = QUESTION) -> Any:
    """The usage of a conversation's next turn; roles take turns after the question."""
    roles = ("assistant", "user")
    said = [{"role": roles[i % 2], "content": text} for i, text in enumerate(more)]
    messages = [
        {"role": "system", "content": f"{head}{SYSTEM}"},
        {"role": "user", "content": question},
        *said,
    ]
    reply = node.http.post(
        CHAT, {"model": node.http.model, "messages": messages, "max_tokens": 4}
    )
    assert reply.status == 200, reply.body
    return reply.json["usage"]


def cached(usage: Any) -> int:
    found: int = usage["prompt_tokens_details"]["cached_tokens"]
    return found


def lines(node: Node, event: str) -> list[str]:
    return [line for line in node.log.read_text().splitlines() if event in line]


def counted(node: Node, series: str) -> list[str]:
    text = Http(node.facts()["listen"]["metrics"], "").get("/metrics").body.decode()
    return [line for line in text.splitlines() if line.startswith(series)]


def test_s75_a_billing_line_ends_no_reuse_and_is_not_in_the_prompt(node: Node) -> None:
    plain = turn(node, "", question="One? " * 10)
    billing = "x-anthropic-billing-header: cc_version=2.1; cch={};\n"
    usages = [
        turn(node, billing.format(number), question="One? " * 10) for number in (1, 2)
    ]
    assert [usage["prompt_tokens"] for usage in usages] == [plain["prompt_tokens"]] * 2
    assert cached(usages[1]) > plain["prompt_tokens"] / 2


def test_s75_a_rule_of_ones_own_is_applied_counted_and_told(node: Node) -> None:
    plain = turn(node, "", question="Two? " * 10)
    for session in ("a1", "b2"):
        usage = turn(node, f"Session: {session}\n", question="Two? " * 10)
        assert usage["prompt_tokens"] == plain["prompt_tokens"]
    told = lines(node, "a rule changed a prompt")
    assert len([line for line in told if "session-line" in line]) == 1
    (series,) = [
        line
        for line in counted(node, "neurond_hygiene_total")
        if "session-line" in line
    ]
    assert 'action="strip"' in series
    assert series.endswith(" 2.0")


def test_s75_a_text_that_is_moved_is_still_in_the_prompt(node: Node) -> None:
    plain = turn(node, "", question="Three? " * 10)
    moved = [turn(node, f"Clock: {n}\n", question="Three? " * 10) for n in (1, 2)]
    for usage in moved:
        assert usage["prompt_tokens"] == plain["prompt_tokens"] + len("\n\nClock: 1")
    assert cached(moved[1]) > plain["prompt_tokens"] / 2


def test_s75_the_journal_says_once_where_a_conversation_left_its_course(
    node: Node,
) -> None:
    turn(node, "run 1 ", "It serves. " * 9, "More. " * 9)
    assert lines(node, "left the course") == []
    usages = [
        turn(node, f"run {n} ", "It serves. " * 9, "More. " * 9 * n) for n in (2, 3)
    ]
    assert max(map(cached, usages)) < 64
    (line,) = lines(node, "left the course")
    at = len("<") + len("system\nrun ")  # one token for <|im_start|>, then bytes
    total = usages[0]["prompt_tokens"]
    for told in (f"token={at}", "at_message=0", "role=system", f"shared={at}/{total}"):
        assert told in line, line
    (series,) = counted(node, "neurond_prompts_diverged_total")
    assert 'role="system"' in series
    assert series.endswith(" 2.0")


def test_s75_a_conversation_that_goes_on_is_no_news(node: Node) -> None:
    before = lines(node, "left the course")
    said: list[str] = []
    for number in range(3):
        turn(node, "", *said, question="Five? " * 10)
        said += [f"answer {number} " * 9, f"question {number} " * 9]
    assert lines(node, "left the course") == before


def test_s75_a_shipped_rule_can_be_turned_off(node: Node) -> None:
    counter = "<total_tokens>9</total_tokens>"
    plain = turn(node, "", question="Six? " * 10)
    usage = turn(node, counter, question="Six? " * 10)
    assert usage["prompt_tokens"] == plain["prompt_tokens"] + len(counter)
