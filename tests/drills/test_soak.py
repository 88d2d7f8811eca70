"""A few seconds of the soak, and proof that it sees what it looks for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.drills.caller import Answer
from tests.drills.judge import Wrong, difference, judge
from tests.drills.soak import soak
from tests.drills.standing import Holding, Standing, leaks, unrest
from tests.drills.traffic import CHAT, Ask

MIB = 1 << 20


@pytest.mark.drill
def test_random_traffic_loses_leaks_and_mixes_nothing(tmp_path: Path) -> None:
    outcome = soak("fake", seed=5, seconds=2.7, folder=tmp_path, phase_s=0.9)
    assert outcome.bad == [], outcome
    assert outcome.ends["complete"] > 10, outcome
    assert len(outcome.points) >= 3


def ask(**fields: Any) -> Ask:
    body = {"messages": [], "max_tokens": 3, "model": "m", **fields}
    return Ask("new", CHAT, body)


def answered(text: str = "abc", reason: str = "length", tokens: int = 3) -> Answer:
    choice = {"index": 0, "message": {"content": text}, "finish_reason": reason}
    return Answer(200, {}, json.dumps({"choices": [choice], **usage(tokens)}).encode())


def usage(tokens: int) -> dict[str, Any]:
    told: dict[str, Any] = {"prompt_tokens": 2, "completion_tokens": tokens}
    told["total_tokens"] = tokens + 2
    return {"usage": {**told, "prompt_tokens_details": {"cached_tokens": 0}}}


def streamed(*events: Any) -> Answer:
    return Answer(200, {}, events=list(events))


def piece(text: str, reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return {"choices": [choice]}


STREAM = ask(stream=True)
END = {"choices": [], **usage(3)}
FAILED = {"error": {"code": "device_fault"}}
REGEX = {"guided_regex": "[a-f]{3,8}-[0-9]{2,4}"}


@pytest.mark.parametrize(
    ("asked", "answer", "end"),
    [
        (ask(), answered(), "complete"),
        (ask(), Answer(has_left=True), "left"),
        (STREAM, streamed(piece("abc", "length"), END, "[DONE]"), "complete"),
        (ask(**REGEX), answered("abc-12", "stop"), "complete"),
        (ask(**REGEX), answered("ab", "length"), "complete"),
        (
            replace(ask(), status=400),
            Answer(400, {}, b'{"error": {"code": "x"}}'),
            "rejected",
        ),
        (
            ask(),
            Answer(429, {"retry-after": "1"}, b'{"error": {"code": "queue_full"}}'),
            "refused",
        ),
    ],
)
def test_the_soak_tells_outcomes_apart(asked: Ask, answer: Answer, end: str) -> None:
    assert judge(asked, answer, obeys=True)[0] == end


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (ask(), answered(reason="")),
        (ask(), answered(tokens=4)),
        (ask(), answered(tokens=2)),
        (ask(n=2), answered()),
        (ask(stop="b"), answered()),
        (ask(ignore_eos=True), answered(reason="stop")),
        (ask(**REGEX), answered("abcd", "stop")),
        (STREAM, streamed(piece("abc", "length"), END)),
        (STREAM, streamed(piece("abc"), END, "[DONE]")),
        (STREAM, streamed(piece("a", "stop"), piece("b", "stop"), END, "[DONE]")),
        (STREAM, streamed(piece("abc", "length"), "[DONE]")),
        (STREAM, streamed(piece("a"), FAILED)),
        (replace(ask(), status=400), answered()),
        (ask(), Answer(429, {}, b'{"error": {"code": "queue_full"}}')),
        (ask(), Answer(500, {}, b'{"error": {"code": "internal_error"}}')),
    ],
)
def test_the_soak_sees_what_is_wrong(asked: Ask, answer: Answer) -> None:
    with pytest.raises(Wrong):
        judge(asked, answer, obeys=True)


def test_the_soak_says_where_two_answers_part() -> None:
    before = ([("text", ["stop"], [("t", -1.0)])], 3)
    assert difference(before, ([("text", ["stop"], [("t", -1.0)])], 3), 0.0) == ""
    near = ([("text", ["stop"], [("t", -1.000001)])], 3)
    assert difference(before, near, 1e-3) == ""
    assert difference(before, near, 0.0).startswith("[0][0][2][0][1]: -1.0 before")
    assert "'other'" in difference(before, ([("other", ["stop"], [])], 3), 0.0)


def standing(mib: float = 50, fds: int = 9, **more: Any) -> Standing:
    holdings = {"worker (7)": Holding(int(mib * MIB), fds, 4, more.get("idle", 30))}
    shm = frozenset(more.get("shm", ()))
    return Standing(
        0.0,
        more.get("of", holdings),
        shm,
        (more.get("lives", 1),),
        more.get("busy", ""),
    )


def test_what_rests_and_does_not_grow_leaks_nothing() -> None:
    grows_early = [standing(mib, 9 + mib % 2) for mib in (20, 50, 60, 61, 60, 62)]
    assert leaks(grows_early) == []


@pytest.mark.parametrize(
    ("points", "told"),
    [
        ([standing(50 + 8 * n) for n in range(6)], "memory +16.0 MiB"),
        ([standing(fds=9 + n) for n in range(6)], "fds 10 -> 13"),
        ([standing(), standing(idle=500)], "500 connections"),
        ([standing(), standing(shm=["cortex-x"])], "cortex-x"),
        ([standing(), standing(lives=2)], "generations (1,) -> (2,)"),
        ([standing(), standing(busy="cpu-0: running 1")], "cpu-0: running 1"),
        ([standing(), standing(of={})], "worker (7) ended"),
    ],
)
def test_the_soak_sees_each_leak(points: list[Standing], told: str) -> None:
    found = leaks(points)
    assert len(found) == 1
    assert told in found[0]


def test_a_device_rests_when_all_its_requests_have_ended() -> None:
    counters = {"requests_total": 6, "requests_finished_total": 3}
    counters |= {"requests_failed_total": 1, "requests_cancelled_total": 2}
    gauges = {"running": 0, "waiting": 0, "kv_used_bytes": 0}
    device = {"device": "d", "counters": counters, "gauges": gauges}
    assert unrest({"devices": [device]}) == ""
    held = {**device, "gauges": {**gauges, "kv_used_bytes": 7}}
    assert unrest({"devices": [held]}) == "d: kv_used_bytes 7"
    lost = {**device, "counters": {**counters, "requests_total": 7}}
    assert unrest({"devices": [lost]}) == "d: 7 requests, 6 outcomes"
