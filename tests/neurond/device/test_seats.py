"""Who waits for whom, and what that costs a step."""

from __future__ import annotations

from typing import Any

from tests.neurond.device.simulated import Simulation

SHARED = tuple(range(200)) * 2
NUM_QUEUED = 8


class Watched(list[int]):
    """Ids that tell when they are compared."""

    num_looks = 0

    def __getitem__(self, place: Any) -> Any:
        type(self).num_looks += isinstance(place, slice)
        return super().__getitem__(place)


def test_a_step_compares_no_ids_of_those_who_wait_for_a_prompt_they_share() -> None:
    host = Simulation({"prefill_chunk": 20})
    for request in range(1 + NUM_QUEUED):
        host.ask(request, (*SHARED, request), max_tokens=2)
    host.step()
    waiting = host.engine.roster.waiting
    assert len(waiting) == NUM_QUEUED
    for sequence in waiting:
        sequence.ids = Watched(sequence.ids)
    host.step(15)
    assert len(waiting) == NUM_QUEUED
    assert Watched.num_looks == 0
    host.drain()
    assert Watched.num_looks > 0
    assert [host.cached(n) for n in range(1, 1 + NUM_QUEUED)] == [400] * NUM_QUEUED
    host.check_nothing_is_held()


def test_who_waited_for_one_that_left_waits_for_another_or_goes_on() -> None:
    host = Simulation({"prefill_chunk": 20})
    for request in range(3):
        host.ask(request, (*SHARED, request), max_tokens=2)
    host.step(3)
    host.engine.cancel(1, 0)
    host.step()
    assert [s.id for s in host.engine.roster.running] == [1]
    (last,) = host.engine.roster.waiting
    assert last.held_by is host.engine.roster.running[0]
    host.drain()
    assert (host.computed(1), host.cached(2)) == (400 + 2 - host.cached(1), 400)
    host.check_nothing_is_held()


def test_who_waits_for_one_that_gives_way_does_not_wait_for_ever() -> None:
    host = Simulation({"prefill_chunk": 20})
    host.ask(1, (*SHARED, 1), max_tokens=2)
    host.ask(2, (*SHARED, 2), max_tokens=2)
    host.step(3)
    host.engine._seats.preempt(host.engine.roster.running[0])
    host.drain()
    assert len(host.ids(1)) == len(host.ids(2)) == 2
    host.check_nothing_is_held()
