"""The request table: exactly one end, nothing out of order. See also `test_resume`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipc.channel import ChannelBroken
from ipc.errors import ServiceError
from ipc.messages import (
    Accepted,
    Finished,
    PromptScores,
    TokenRow,
    Tokens,
    TopScores,
)
from ipc.ring import RecordTooLarge, RingFull
from neurond.serving.entries import State
from tests.neurond.serving.lines import Heard, submit
from tests.neurond.serving.tables import Bench


def test_an_answer_arrives_in_order_and_the_entry_keeps_what_a_resume_needs() -> None:
    bench = Bench()
    for event in ["accepted", "tokens", "tokens", "finished"]:
        bench.happen(event)
    assert bench.heard.names == ["accepted", "tokens", "tokens", "finished"]
    assert bench.entry.submit.ids == (1, 2, 3)
    assert bench.entry.emitted == [5, 6, 5, 6]
    assert len(bench.table) == bench.table.in_flight("gpu-0") == 0


@pytest.mark.parametrize("start", [1, 3, -1])
def test_tokens_that_do_not_continue_the_entry_fail_it_alone(start: int) -> None:
    bench = Bench()
    other = bench.add()
    bench.happen("accepted")
    bench.happen("tokens")
    bench.say(Tokens((TokenRow(100, start, (9,)),)))
    assert bench.heard.events[-1] == ("failed", "internal_error")
    assert bench.entry.emitted == [5, 6]
    assert bench.line.cancelled == [100]
    assert other.state is State.SUBMITTED


@pytest.mark.parametrize(
    ("asked", "logprobs", "top"),
    [
        (-1, (-0.1, -0.2), ()),
        (0, (), ()),
        (0, (-0.1,), ()),
        (1, (-0.1, -0.2), ()),
        (1, (-0.1, -0.2), (((5, -0.1),),)),
    ],
)
def test_other_logprobs_than_were_asked_for_fail_the_entry(
    asked: int, logprobs: tuple[float, ...], top: tuple[TopScores, ...]
) -> None:
    bench, heard = Bench(), Heard()
    entry = bench.table.submit("gpu-0", bench.line, submit(logprobs=asked), heard)
    bench.say(Accepted(entry.submit.id, 0, 0))
    bench.say(Tokens((TokenRow(entry.submit.id, 0, (5, 6), logprobs, top),)))
    assert heard.events[-1] == ("failed", "internal_error")


def test_logprobs_that_were_asked_for_are_told() -> None:
    bench, heard = Bench(), Heard()
    entry = bench.table.submit("gpu-0", bench.line, submit(logprobs=1), heard)
    bench.say(Accepted(entry.submit.id, 0, 0))
    top = (((5, -0.1),), ((7, -0.2),))
    bench.say(Tokens((TokenRow(entry.submit.id, 0, (5, 6), (-0.1, -0.9), top),)))
    assert heard.events[-1] == ("logprobs", ((-0.1, -0.9), top))


@pytest.mark.parametrize(
    "records",
    [
        [PromptScores(100, 0, (-1.0,))],
        [PromptScores(100, 2, (-1.0,))],
        [PromptScores(100, 1, (-1.0, -2.0, -3.0))],
        [PromptScores(100, 1, (-1.0,)), PromptScores(100, 1, (-1.0,))],
    ],
)
def test_prompt_scores_with_gaps_or_twice_fail_the_entry(
    records: list[PromptScores],
) -> None:
    bench = Bench()
    bench.happen("accepted")
    for record in records:
        bench.say(record)
    assert bench.heard.events[-1] == ("failed", "internal_error")


def test_a_prompts_scores_and_a_vector_are_told_in_order() -> None:
    bench = Bench()
    bench.happen("accepted")
    bench.say(PromptScores(100, 1, (-1.0,)))
    bench.say(PromptScores(100, 2, (-2.0,)))
    bench.happen("vector")
    assert bench.heard.names == ["accepted", "scores", "scores", "vector"]


def test_a_repeated_record_is_never_shown_twice() -> None:
    bench = Bench()
    bench.happen("accepted")
    record = Tokens((TokenRow(100, 0, (5,)),))
    bench.say(record)
    bench.say(record)
    assert bench.heard.events.count(("tokens", (5,))) == 1


def test_an_end_that_skips_tokens_is_a_failure_not_an_answer() -> None:
    bench = Bench()
    bench.happen("accepted")
    bench.say(Finished(100, "stop", 3, 5, 0))
    assert bench.heard.events[-1] == ("failed", "internal_error")


def test_ids_are_never_used_twice_and_start_where_told() -> None:
    bench = Bench()
    bench.happen("cancel")
    bench.add()
    bench.add()
    assert bench.line.submitted == [100, 101, 102]


def test_tokens_for_a_cancelled_request_ask_the_device_to_stop_again() -> None:
    bench = Bench()
    bench.happen("accepted")
    bench.line.refusal = RingFull()
    bench.happen("cancel")
    bench.line.refusal = None
    bench.say(Tokens((TokenRow(100, 0, (5,)),)))
    assert bench.line.cancelled == [100]
    assert bench.heard.names == ["accepted"]


def test_a_failure_keeps_its_code_across_the_ring() -> None:
    bench = Bench()
    bench.happen("accepted")
    bench.happen("failed")
    assert bench.heard.events[-1] == ("failed", "nan_logits")


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (RingFull(), "queue_full"),
        (RecordTooLarge(), "request_too_large"),
        (ChannelBroken("x"), "model_recovering"),
    ],
)
def test_a_request_that_cannot_be_sent_is_refused_and_leaves_nothing(
    refusal: Exception, code: str
) -> None:
    bench = Bench()
    bench.line.refusal = refusal
    with pytest.raises(ServiceError) as caught:
        bench.add()
    assert caught.value.code == code
    assert len(bench.table) == 1


def test_s22_a_full_table_refuses_at_once() -> None:
    bench = Bench(max_entries=1)
    with pytest.raises(ServiceError) as caught:
        bench.add()
    assert (caught.value.code, caught.value.status) == ("queue_full", 429)
    bench.happen("cancel")
    bench.add()


@pytest.mark.parametrize(("num_seats", "after_s"), [(1, 9.0), (2, 2.0), (0, 2.0)])
def test_who_waits_behind_others_frees_no_place_before_them(
    num_seats: int, after_s: float
) -> None:
    """One is served and has 9 s left; 2 s of work wait."""
    bench = Bench(max_entries=2)
    bench.table.cancel(bench.entry)
    _, serving = [
        bench.table.submit(
            "gpu-0", bench.line, replace(submit(), max_tokens=n), Heard()
        )
        for n in (20, 92)
    ]
    bench.say(Accepted(serving.submit.id, 0, 0))
    bench.say(Tokens((TokenRow(serving.submit.id, 0, (5, 6)),)))
    with pytest.raises(ServiceError) as caught:
        bench.table.check_room(1, 0.1, num_seats)
    assert caught.value.retry_after_s == pytest.approx(after_s)
