"""A request's life: committed or refused, read at any pace, always released."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.channel import ChannelBroken
from ipc.errors import ServiceError, error_for
from ipc.messages import Accepted, Failed, Finished, RingUp, TokenRow, Tokens
from ipc.ring import RingFull
from neurond.serving.choice import Order
from neurond.serving.generation import Generation, Usage
from neurond.serving.requests import RequestTable
from tests.neurond.serving.lines import Line, submit


class Letters:
    """A tokenizer whose ids are bytes."""

    def piece(self, token: int, *, first: bool) -> bytes | None:
        return bytes([token]) if token < 256 else None

    def spelt(self, token: int, *, first: bool) -> bytes:
        return bytes([token]) if token < 256 else b"<end>"


class Bench:
    def __init__(
        self,
        *,
        stops: tuple[str, ...] = (),
        n: int = 1,
        paced: bool = True,
        **sampling: Any,
    ) -> None:
        self.now_s = 0.0
        self.table = RequestTable(first_id=1, max_entries=16)
        self.line = Line()
        self.generation = Generation(self.table, clock=lambda: self.now_s)
        self.order = Order(submit(**sampling), n, stops, Letters(), paced)
        self.emitted = {i: 0 for i in range(1, n + 1)}

    def start(self) -> Generation:
        self.generation.start(self.order, "gpu-0", self.line)
        return self.generation

    def say(self, message: RingUp) -> None:
        self.table.on_message("gpu-0", self.line, message)

    def accept(self) -> None:
        for request in self.emitted:
            self.say(Accepted(request, 0, 2))

    def text(self, text: str, request: int = 1) -> None:
        ids = tuple(text.encode())
        self.say(Tokens((TokenRow(request, self.emitted[request], ids),)))
        self.emitted[request] += len(ids)

    def finish(self, reason: str = "stop", request: int = 1) -> None:
        self.say(Finished(request, reason, 3, self.emitted[request], 2))


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


def started(**options: Any) -> Bench:
    bench = Bench(**options)
    bench.start()
    bench.accept()
    return bench


def test_several_prompts_are_one_request_and_each_counts_once() -> None:
    bench = Bench(n=2)
    bench.start()
    bench.order = replace(bench.order, submit=submit(ids=(1, 2, 3, 4, 5)))
    bench.start()
    assert len(bench.generation.choices) == 4
    for request, cached in ((1, 1), (2, 3), (3, 4), (4, 5)):
        bench.say(Accepted(request, 0, cached))
    assert bench.generation.usage == Usage(prompt=8, completion=0, cached=1 + 4)
    bench.line.refusal = RingFull()
    with pytest.raises(ServiceError):
        bench.start()
    assert bench.line.submitted == [1, 2, 3, 4]
    assert len(bench.table) == 0


def test_text_gathers_until_it_is_taken() -> None:
    bench = started()
    choice = bench.generation.choices[0]
    bench.text("he")
    bench.text("llo")
    assert choice.take().text == "hello"
    assert choice.take().text == ""
    bench.text("!")
    bench.finish("length")
    assert (choice.take().text, choice.finish) == ("!", "length")
    assert bench.generation.ended
    assert bench.generation.usage == Usage(prompt=3, completion=6, cached=2)


def test_a_stop_string_ends_the_work_on_the_device_at_once() -> None:
    bench = started(stops=("END",))
    bench.text("say EN")
    bench.text("D and more")
    choice = bench.generation.choices[0]
    assert (choice.take().text, choice.finish) == ("say ", "stop")
    assert bench.line.cancelled == [1]
    assert bench.generation.usage.completion == len("say END")


def test_text_held_back_for_a_stop_string_comes_with_the_end() -> None:
    bench = started(stops=("END",))
    bench.text("say E")
    assert bench.generation.choices[0].take().text == "say "
    bench.finish()
    assert bench.generation.choices[0].take().text == "E"


@given(st.lists(st.sampled_from(["text", "take"]), max_size=20))
def test_any_pace_of_reading_yields_the_same_text(steps: list[str]) -> None:
    bench = started()
    choice = bench.generation.choices[0]
    read = ""
    for step in steps:
        if step == "text":
            bench.text("añ")
        else:
            read += choice.take().text
    bench.finish()
    assert read + choice.take().text == "añ" * steps.count("text")


def test_it_is_committed_once_every_choice_is_accepted() -> None:
    async def work() -> None:
        bench = Bench(n=2)
        generation = bench.start()
        waiting = asyncio.ensure_future(generation.committed(5))
        bench.say(Accepted(1, 0, 0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        bench.say(Accepted(2, 0, 0))
        await waiting

    run(work())


def test_a_refusal_by_the_device_is_raised_before_the_commit() -> None:
    async def work() -> None:
        bench = Bench(n=2)
        generation = bench.start()
        bench.say(Accepted(1, 0, 0))
        bench.say(Failed(2, error_for("queue_full", "no").to_wire()))
        with pytest.raises(ServiceError) as caught:
            await generation.committed(5)
        assert caught.value.code == "queue_full"

    run(work())


def test_no_decision_in_time_is_503() -> None:
    async def work() -> None:
        bench = Bench()
        with pytest.raises(ServiceError) as caught:
            await bench.start().committed(0)
        assert (caught.value.code, caught.value.status) == ("overloaded", 503)

    run(work())


def test_silence_is_reported_and_nothing_is_lost_by_it() -> None:
    async def work() -> None:
        bench = started()
        assert await bench.generation.changed(1)
        assert not await bench.generation.changed(0.001)
        bench.text("x")
        assert await bench.generation.changed(1)

    run(work())


def test_a_reader_is_woken_by_new_text() -> None:
    async def work() -> None:
        bench = started()
        await bench.generation.changed(1)
        waiting = asyncio.ensure_future(bench.generation.changed(5))
        await asyncio.sleep(0)
        bench.text("x")
        assert await waiting

    run(work())


def test_choices_are_kept_apart_and_share_the_seed() -> None:
    bench = started(n=2)
    bench.text("a", 1)
    bench.text("b", 2)
    assert [choice.take().text for choice in bench.generation.choices] == ["a", "b"]
    sent: list[Any] = bench.line.sent
    assert [(m.choice, m.seed) for m in sent] == [(0, 7), (1, 7)]


def test_close_cancels_what_has_not_ended() -> None:
    bench = started(n=3)
    bench.finish(request=2)
    bench.generation.close()
    bench.generation.close()
    assert bench.line.cancelled == [1, 3]
    assert len(bench.table) == 0


def test_a_ring_that_fills_up_between_choices_leaves_none_of_them() -> None:
    bench = Bench(n=2)
    submit_all = bench.line.submit

    def refuse_second(message: Any) -> None:
        if bench.line.submitted:
            bench.line.refusal = RingFull()
        submit_all(message)

    bench.line.submit = refuse_second  # type: ignore[method-assign]
    with pytest.raises(ServiceError, match="full"):
        bench.start()
    assert len(bench.table) == 0


def test_one_failed_choice_is_the_answers_failure() -> None:
    bench = started(n=2)
    bench.say(Failed(1, error_for("nan_logits", "NaN").to_wire()))
    assert bench.generation.ended
    assert bench.generation.error is not None


@pytest.mark.parametrize("paced", [True, False])
def test_a_reader_that_stalls_for_a_minute_loses_its_request(paced: bool) -> None:
    bench = started(paced=paced)
    bench.text("a")
    bench.now_s = 61.0
    bench.text("b")
    assert (bench.generation.error is not None) == paced
    assert bench.line.cancelled == ([1] if paced else [])


def test_a_reader_that_keeps_pace_never_stalls() -> None:
    bench = started()
    for _ in range(5):
        bench.text("a")
        bench.now_s += 50
        bench.generation.choices[0].take()
    assert bench.generation.error is None


def test_a_backlog_over_a_mebibyte_ends_the_request() -> None:
    bench = started()
    for _ in range(17):
        bench.text("x" * (1 << 16))
    assert bench.generation.error is not None
    assert bench.line.cancelled == [1]


def test_a_death_before_the_decision_says_so_unless_the_device_is_back() -> None:
    async def work() -> None:
        bench = Bench(n=2)
        bench.start()
        bench.table.on_down("gpu-0", 1)
        with pytest.raises(ServiceError) as failed:
            await bench.generation.committed(0.0)
        assert failed.value.code == "model_recovering"
        bench.line = Line(2)
        bench.table.on_up("gpu-0", bench.line)
        bench.accept()
        await bench.generation.committed(0.0)

    run(work())


def test_a_stop_string_over_a_death_is_found_and_usage_counts_once() -> None:
    bench = started(stops=("stop",))
    bench.text("a st")
    bench.table.on_down("gpu-0", 1)
    choice = bench.generation.choices[0]
    assert choice.take().text == "a "
    bench.line = Line(2)
    bench.table.on_up("gpu-0", bench.line)
    bench.say(Accepted(1, 0, 3))
    bench.text("op")
    assert (choice.take().text, choice.finish) == ("", "stop")
    assert bench.line.cancelled == [1]
    assert bench.generation.usage == Usage(prompt=3, completion=6, cached=2)


def test_choices_that_are_still_to_be_sent_wait_for_the_device_too() -> None:
    async def work() -> None:
        bench = Bench()
        order = replace(bench.order, submit=submit(ids=(1,) * 10_000))
        orders = [order] * 3
        all_sent = asyncio.ensure_future(
            bench.generation.start_all(orders, "gpu-0", bench.line, timeout_s=5.0)
        )
        await asyncio.sleep(0)
        assert bench.line.submitted == [1]
        bench.table.on_down("gpu-0", 1)
        bench.line.refusal = ChannelBroken("gone")
        bench.line = Line(2)
        bench.table.on_up("gpu-0", bench.line)
        for request in (1, 2, 3):
            bench.say(Accepted(request, 0, 0))
            await asyncio.sleep(0.01)
        await all_sent
        assert bench.line.submitted == [1, 2, 3]

    run(work())
