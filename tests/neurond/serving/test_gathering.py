"""Many inputs, some at a time: all vectors or the first error, and nothing left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest

from ipc.channel import ChannelBroken
from ipc.errors import ServiceError, error_for
from ipc.messages import Accepted, Failed, Finished, Vector
from ipc.ring import RingFull
from neurond.serving.gathering import MAX_IN_FLIGHT, Gathering
from neurond.serving.generation import Usage
from neurond.serving.requests import RequestTable
from tests.neurond.serving.lines import Line, submit

DEVICE = "gpu-0"


class Bench:
    """A device that answers when told to; `num_inputs` of three tokens each."""

    def __init__(self, num_inputs: int, *, max_entries: int = 64) -> None:
        self.table = RequestTable(first_id=0, max_entries=max_entries)
        self.line = Line()
        self.gathering = Gathering(self.table, lambda values: b"<%b>" % values)
        self.submits = [replace(submit(), embed=True) for _ in range(num_inputs)]

    def start(self) -> Gathering:
        self.gathering.start(self.submits, DEVICE, self.line)
        return self.gathering

    def say(self, *messages: Any) -> None:
        for message in messages:
            self.table.on_message(DEVICE, self.line, message)

    def accept(self, request: int) -> None:
        self.say(Accepted(request, 0, 0))

    def answer(self, request: int) -> None:
        values = b"%d" % request
        finished = Finished(request, "stop", 3, 0, 0)
        self.say(Accepted(request, 0, 0), Vector(request, values), finished)

    def answer_accepted(self, request: int) -> None:
        self.say(Vector(request, b"%d" % request), Finished(request, "stop", 3, 0, 0))

    async def result(self, silence_s: float = 60.0) -> list[bytes]:
        return await self.gathering.result(decision_s=0.05, silence_s=silence_s)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


def test_vectors_come_in_any_order_and_leave_in_that_of_the_inputs() -> None:
    async def work() -> None:
        bench = Bench(3)
        bench.start()
        for request in (2, 0, 1):
            bench.answer(request)
        assert await bench.result() == [b"<0>", b"<1>", b"<2>"]
        assert bench.gathering.usage == Usage(9, 0, 0)
        assert len(bench.table) == 0

    run(work())


def test_a_long_list_never_takes_more_than_its_places() -> None:
    async def work() -> None:
        bench = Bench(5 * MAX_IN_FLIGHT)
        bench.start()
        for request in range(5 * MAX_IN_FLIGHT):
            assert len(bench.table) <= MAX_IN_FLIGHT
            bench.answer(request)
        assert len(await bench.result()) == 5 * MAX_IN_FLIGHT

    run(work())


def test_a_queue_that_is_full_is_waited_out_behind_its_own_inputs() -> None:
    async def work() -> None:
        bench = Bench(6, max_entries=2)
        bench.start()
        for request in range(6):
            assert len(bench.table) <= 2
            bench.answer(request)
        assert len(await bench.result()) == 6

    run(work())


def test_a_queue_that_is_full_of_others_refuses_it_at_once() -> None:
    async def work() -> None:
        bench = Bench(2)
        bench.line.refusal = RingFull("full")
        with pytest.raises(ServiceError) as refused:
            bench.start()
        assert refused.value.code == "queue_full"
        assert len(bench.table) == 0

    run(work())


FULL = error_for("queue_full", "every place is taken").to_wire()


def test_a_device_with_few_places_gets_a_long_list_in_as_many() -> None:
    async def work() -> None:
        bench = Bench(40)
        bench.start()
        result = asyncio.ensure_future(bench.result())
        taken: list[int] = []
        seen = 0
        while not result.done():
            new = [m.id for m in bench.line.sent[seen:]]
            seen += len(new)
            taken += new[: 2 - len(taken)]
            for request in new:
                if request in taken:
                    bench.accept(request)
                else:
                    bench.say(Failed(request, FULL))
            if taken:
                bench.answer_accepted(taken.pop(0))
            await asyncio.sleep(0)
        assert len(await result) == 40
        assert seen <= MAX_IN_FLIGHT + 3 * 40, "it learns how many places there are"
        assert len(bench.table) == 0

    run(work())


def test_a_list_that_was_begun_waits_while_others_have_every_place() -> None:
    async def work() -> None:
        bench = Bench(2)
        bench.start()
        result = asyncio.ensure_future(bench.result())
        bench.answer(0)
        bench.say(Failed(1, FULL))
        assert len(bench.table) == 0
        for request in (2, 3):  # each try is a request of its own
            while len(bench.line.sent) <= request:
                await asyncio.sleep(0.01)
            assert len(bench.table) == 1
            if request == 2:
                bench.say(Failed(request, FULL))
        bench.answer(3)
        assert await result == [b"<0>", b"<3>"]

    run(work())


def test_others_that_keep_every_place_are_the_answer_in_the_end() -> None:
    async def work() -> None:
        bench = Bench(2)
        bench.start()
        result = asyncio.ensure_future(bench.result(silence_s=0.1))
        bench.answer(0)
        bench.say(Failed(1, FULL))
        seen = 2
        while not result.done():
            for message in bench.line.sent[seen:]:
                bench.say(Failed(message.id, FULL))
                seen += 1
            await asyncio.sleep(0.01)
        with pytest.raises(ServiceError) as refused:
            await result
        assert refused.value.code == "queue_full"
        assert len(bench.table) == 0

    run(work())


def test_a_device_that_takes_nothing_of_a_list_refuses_it() -> None:
    async def work() -> None:
        bench = Bench(2)
        bench.start()
        bench.say(Failed(0, FULL))
        if bench.table:
            bench.say(Failed(1, FULL))
        with pytest.raises(ServiceError) as refused:
            await bench.result()
        assert refused.value.code == "queue_full"
        assert len(bench.table) == 0

    run(work())


def test_the_error_of_one_input_ends_them_all() -> None:
    async def work() -> None:
        bench = Bench(3)
        bench.start()
        bench.answer(0)
        bench.accept(1)
        bench.say(Failed(1, error_for("nan_logits", "NaN").to_wire()))
        with pytest.raises(ServiceError) as failed:
            await bench.result()
        assert failed.value.code == "nan_logits"
        assert bench.line.cancelled == [2]
        assert len(bench.table) == 0

    run(work())


def test_a_device_that_dies_is_waited_for_and_does_what_is_left() -> None:
    async def work() -> None:
        bench = Bench(40)
        bench.start()
        bench.answer(0)
        old, bench.line = bench.line, Line(2)
        old.refusal = ChannelBroken("gone")
        bench.table.on_down(DEVICE, old.generation)
        result = asyncio.ensure_future(bench.result(silence_s=0.01))
        await asyncio.sleep(0.03)  # a silence that has its reason
        bench.table.on_up(DEVICE, bench.line)
        assert len(bench.table) == MAX_IN_FLIGHT
        for request in range(1, 40):
            bench.answer(request)
        assert await result == [b"<%d>" % index for index in range(40)]
        assert len(bench.table) == 0

    run(work())


def test_a_device_that_dies_before_it_took_anything_is_the_answer() -> None:
    async def work() -> None:
        bench = Bench(3)
        bench.start()
        bench.table.on_down(DEVICE, bench.line.generation)
        with pytest.raises(ServiceError) as failed:
            await bench.result()
        assert failed.value.code == "model_recovering"
        bench.gathering.close()
        assert len(bench.table) == 0

    run(work())


def test_closing_cancels_what_is_in_flight_and_sends_no_more() -> None:
    async def work() -> None:
        bench = Bench(40)
        bench.start()
        bench.gathering.close()
        assert sorted(bench.line.cancelled) == list(range(MAX_IN_FLIGHT))
        assert len(bench.table) == 0
        assert not bench.gathering.ended

    run(work())


def test_no_decision_and_silence_after_one_are_told_apart_from_work() -> None:
    async def work() -> None:
        undecided = Bench(1)
        undecided.start()
        with pytest.raises(ServiceError) as late:
            await undecided.result()
        silent = Bench(1)
        silent.start()
        silent.accept(0)
        with pytest.raises(ServiceError) as quiet:
            await silent.result(silence_s=0.05)
        assert late.value.code == quiet.value.code == "overloaded"

    run(work())


def test_an_end_without_a_vector_is_our_error() -> None:
    async def work() -> None:
        bench = Bench(1)
        bench.start()
        bench.say(Accepted(0, 0, 0), Finished(0, "stop", 3, 0, 0))
        with pytest.raises(ServiceError) as failed:
            await bench.result()
        assert failed.value.code == "internal_error"

    run(work())
