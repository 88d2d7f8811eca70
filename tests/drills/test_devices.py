"""A tenth of the devices' crash drill, and proof that it sees what it looks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.drills.chatter import HUNG_S, judge_reply, judge_stream
from tests.drills.devices import Outcome, Standing, _compare, run
from tests.httpclient import Reply


@pytest.mark.drill
def test_ten_kills_under_32_clients_mix_hang_and_leak_nothing(tmp_path: Path) -> None:
    outcome = run(kills=10, seed=20, clients=32, folder=tmp_path)
    assert outcome.bad == [], f"{outcome}\n{outcome.examples[:5]}"
    assert outcome.kills >= 10
    assert outcome.answers["complete"] > 30, outcome
    assert outcome.answers["cut"] == 0, outcome
    assert outcome.longest_s < HUNG_S


def document(text: str, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return {"choices": [choice]}


END = document("", "stop")
ERROR = {"error": {"code": "device_fault"}}


@pytest.mark.parametrize(
    ("documents", "verdict"),
    [
        ([document("ec"), document("ho"), END, "[DONE]"], "complete"),
        ([document("ec"), END, "[DONE]"], "mixed"),
        ([document("echo"), END, END, "[DONE]"], "mixed"),
        ([document("echo"), "[DONE]"], "mixed"),
        ([document("ec"), ERROR], "cut"),
        ([document("ex"), ERROR], "mixed"),
        ([document("ec"), "[DONE]", ERROR], "broken"),
        ([document("echo"), END], "broken"),
        ([], "broken"),
    ],
)
def test_the_drill_tells_streams_apart(documents: list[Any], verdict: str) -> None:
    assert judge_stream(documents, "echo") == verdict


def test_the_drill_tells_whole_answers_apart() -> None:
    whole = b'{"choices": [{"message": {"content": "echo"}}]}'
    error = b'{"error": {"code": "model_recovering"}}'
    assert judge_reply(Reply(200, {}, whole), "echo") == "complete"
    assert judge_reply(Reply(200, {}, whole), "else") == "mixed"
    assert judge_reply(Reply(503, {"retry-after": "1"}, error), "echo") == "refused"
    assert judge_reply(Reply(503, {}, error), "echo") == "broken"
    assert judge_reply(Reply(500, {}, error), "echo") == "broken"


def test_the_drill_tells_of_what_is_left() -> None:
    def standing(fds: int, zombies: int, names: frozenset[str], size: int) -> Standing:
        held = dict.fromkeys(("supervisor", "zygote", "worker 1", "worker 2"), fds)
        return Standing(held, zombies, names, size)

    outcome = Outcome()
    clean = standing(10, 0, frozenset(), 50 << 20)
    _compare(outcome, clean, clean)
    assert outcome.bad == []
    _compare(outcome, clean, standing(11, 2, frozenset({"cortex-x"}), 80 << 20))
    assert len(outcome.leaks) == 4 + 3
