"""A few blows of each kind, and proof that the drill sees what it looks for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cortexd.ctl.drill import KINDS as MILD
from neurond.injecting import Injector
from tests.drills.asks import KINDS, catalogue
from tests.drills.breaker import FAULTS, ROUND
from tests.drills.caller import Answer
from tests.drills.chaos import FULL, MODES, Order, Outcome, drill
from tests.drills.ledger import Ledger, error_code
from tests.drills.pulse import Beats
from tests.drills.stacks import PROFILES
from tests.drills.traffic import CHAT, Ask

SHORT = Order("faults", "fake", "invariant", 5)


@pytest.mark.drill
def test_s01_faults_of_each_sort_cost_no_request_that_they_need_not(
    tmp_path: Path,
) -> None:
    outcome = drill(SHORT, seed=324, folder=tmp_path, rests=1)
    assert outcome.books.bad == [], outcome
    assert outcome.failures == [], outcome
    assert outcome.books.ends["complete"] > 10, outcome
    assert outcome.blows.keys() == {
        "worker",
        "illegal_access",
        "kill",
        "shape",
        "wrong_result",
    }
    assert outcome.recoveries


def test_each_fault_that_can_be_ordered_is_fired_by_a_drill() -> None:
    listed = Injector(list, is_allowed=True).faults()["kinds"]
    assert {row["kind"] for row in listed} == set(FAULTS)
    assert set(FAULTS.values()) <= set(ROUND)
    assert set(MILD) <= set(FAULTS)


def test_the_long_drill_has_every_mode_and_its_numbers() -> None:
    counts = {(o.mode, o.model, o.numerics): o.count for o in FULL}
    assert counts["kills", "tiny", "invariant"] == 900
    assert counts["kills", "embedded", "invariant"] == 100
    assert counts["stops", "tiny", "invariant"] == 200
    assert counts["again", "tiny", "invariant"] == 200
    assert counts["workers", "tiny", "invariant"] == 50
    assert {order.mode for order in FULL} == set(MODES)
    assert any(order.numerics == "fast" for order in FULL)


def test_what_is_asked_for_is_of_every_kind_and_can_be_asked_again() -> None:
    asks = catalogue(PROFILES["tiny"], 20)
    assert [ask.kind for ask in asks] == list(KINDS)
    for ask in asks:
        if ask.kind != "vector":
            assert ask.body["temperature"] == 0 or "seed" in ask.body, ask.kind
    assert any(ask.streams for ask in asks)
    assert any(ask.num_choices == 2 and ask.streams for ask in asks)


# ---- the ledger, against a server that answers as it is told

BODY = {"model": "m", "messages": [], "max_tokens": 2, "temperature": 0}
Reply = tuple[int, dict[str, Any]]


def whole(text: str) -> Reply:
    choice = {"index": 0, "message": {"content": text}, "finish_reason": "length"}
    usage = {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    details = {"prompt_tokens_details": {"cached_tokens": 0}}
    return 200, {"choices": [choice], "usage": usage | details}


def error(status: int, code: str) -> Reply:
    return status, {"error": {"code": code, "message": "words"}}


PEACE = whole("ab")


async def kept(
    replies: list[Reply],
    told: Callable[[Ledger], None] = lambda _ledger: None,
    *,
    is_exact: bool = True,
    kind: str = "whole",
) -> Ledger:
    """The ledger after one request in peace and one that is answered by the rest."""
    left = iter([PEACE, *replies])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        size = next(line for line in lines if line.startswith("content-length"))
        await reader.readexactly(int(size.split(":")[1]))
        status, document = next(left)
        body = json.dumps(document).encode()
        head = f"HTTP/1.1 {status} X\r\nretry-after: 1\r\ncontent-length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        ask = Ask(kind, CHAT, BODY)
        ledger = Ledger((host, port), [ask], is_exact=is_exact)
        await ledger.rehearse(obeys=False)
        told(ledger)
        await ledger.one(0)
    return ledger


def run(work: Awaitable[Ledger]) -> Ledger:
    async def awaited() -> Ledger:
        return await work

    return asyncio.run(awaited())


def test_an_answer_as_in_peace_is_complete() -> None:
    books = run(kept([PEACE])).books
    assert (dict(books.ends), books.bad) == ({"complete": 1}, [])


def test_a_refusal_while_the_device_is_away_is_asked_again() -> None:
    away = error(503, "model_recovering")
    books = run(kept([away, away, PEACE])).books
    assert (dict(books.ends), books.refusals.total()) == ({"complete": 1}, 2)


@pytest.mark.parametrize(
    "replies",
    [
        [whole("ax")],
        [whole("a")],
        [whole("abb")],
        [error(500, "internal_error")],
        [error(503, "device_fault")],
        [error(502, "bad_gateway")],
        [error(422, "request_quarantined")],
    ],
)
def test_an_answer_that_is_another_or_an_error_is_a_violation(
    replies: list[Reply],
) -> None:
    books = run(kept(replies)).books
    assert books.ends["violation"] == 1
    assert len(books.bad) == 1


def test_a_fault_explains_as_many_errors_as_it_may_cause() -> None:
    nan = error(500, "nan_logits")
    books = run(kept([nan], lambda ledger: ledger.allowed.update(nan_logits=1))).books
    assert (books.explained["nan_logits"], books.bad) == (1, [])
    assert run(kept([nan])).books.bad


def test_a_workers_death_explains_what_began_before_it() -> None:
    lost = error(502, "bad_gateway")

    def died(after_s: float) -> Callable[[Ledger], None]:
        return lambda ledger: ledger.workers_died_s.append(time.monotonic() + after_s)

    assert run(kept([lost], died(1.0))).books.bad == []
    assert run(kept([lost], died(-1.0))).books.bad


def test_fast_numerics_may_differ_but_not_where_a_grammar_decides() -> None:
    books = run(kept([whole("ax")], is_exact=False)).books
    assert (dict(books.ends), books.bad) == ({"other": 1}, [])
    assert run(kept([whole("ax")], is_exact=False, kind="forced")).books.bad


def test_an_error_event_tells_its_code() -> None:
    assert error_code(Answer(200, {}, events=[{"error": {"code": "x"}}])) == "x"
    assert error_code(Answer(200, {}, events=["[DONE]"])) == ""


def test_a_request_that_nobody_booked_is_missed() -> None:
    ledger = run(kept([PEACE]))
    ledger.books.submitted += 1
    assert ledger.books.bad == ["2 submitted, 1 booked"]


def test_slow_health_is_wrong() -> None:
    order = Order("kills", "fake", "fast", 1)
    slow = Outcome(order, beats=Beats((0.001, *[0.07] * 9), 0))
    fine = Outcome(order, beats=Beats((*[0.001] * 99, 0.07), 0))
    assert [one.startswith("health took") for one in slow.bad] == [True]
    assert fine.bad == []
