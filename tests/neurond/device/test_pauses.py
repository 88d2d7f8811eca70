"""What may happen to others, and to itself, while a chunk stands between two stints."""

from __future__ import annotations

import pytest

from ipc.messages import Failed
from tests.neurond.device.rig import chat_ids
from tests.neurond.device.simulated import Simulation

LARGE = tuple(n % 250 for n in range(1500))
STREAM = (1, 2)
PAGE_TOKENS = 8
STEPS = {"step_ms": 5, "token_ms": 0.5, "page_tokens": PAGE_TOKENS}
PAGES = -(-len(LARGE) // PAGE_TOKENS)


def crowded(num_steps: int, *, pages: int = 1 << 10) -> Simulation:
    """A stream that runs for so many steps when a large prompt comes."""
    host = Simulation(None, **STEPS, pages=pages, pauses=num_steps)
    host.ask(1, STREAM, max_tokens=80)
    host.step(num_steps)
    host.ask(2, LARGE, max_tokens=20)
    return host


@pytest.fixture(scope="module")
def alone() -> Simulation:
    host = Simulation(None, **STEPS)
    host.answer(1, STREAM, max_tokens=80)
    host.answer(2, LARGE, max_tokens=20)
    return host


def check(host: Simulation, alone: Simulation) -> None:
    for request in (1, 2):
        assert host.ids(request) == alone.ids(request)
    host.check_nothing_is_held()


def test_a_chunk_pauses_and_streams_go_on(alone: Simulation) -> None:
    host = crowded(8)
    before = len(host.ids(1))
    while not host.ids(2):
        host.step()
    assert host.backend.num_paused >= 3
    assert len(host.ids(1)) >= before + host.backend.num_paused
    host.drain()
    check(host, alone)


def test_who_gives_way_between_two_stints_is_computed_again(alone: Simulation) -> None:
    """Nothing of the chunk is shared with the one that comes next."""
    num_met = 0
    for num_steps in range(5, 13):
        host = crowded(num_steps, pages=PAGES + 3)
        (large,) = [s for s in host.engine.roster if s.id == 2]
        opened = 0
        while host.engine.busy:
            before, opened = large.num_preempted, large.open_ids
            host.step()
            num_met += bool(opened and large.num_preempted > before)
        check(host, alone)
    assert num_met > 0


def test_a_stream_of_another_model_goes_on_between_stints(alone: Simulation) -> None:
    host = Simulation(None, **STEPS, pauses=1)
    host.load("other", step_ms=5)
    host.ask(3, STREAM, model="other", max_tokens=80)
    host.step(8)
    host.ask(4, LARGE, max_tokens=20)
    before = len(host.ids(3))
    while not host.ids(4):
        host.step()
    assert host.backend.num_paused >= 3
    assert len(host.ids(3)) >= before + host.backend.num_paused
    host.drain()
    assert (host.ids(3), host.ids(4)) == (alone.ids(1), alone.ids(2))
    host.check_nothing_is_held()


def test_s20_out_of_memory_beside_a_paused_chunk_ends_its_request_alone(
    alone: Simulation,
) -> None:
    num_met = 0
    for num_steps in range(5, 9):
        host = crowded(num_steps)
        host.ask(3, chat_ids("[[fake tokens=60 fault=oom at=3]]"), max_tokens=60)
        host.drain()
        assert isinstance(host.ended(3), Failed)
        assert host.code(3) == "insufficient_vram"
        num_met += host.backend.num_ooms_in_stints
        check(host, alone)
    assert num_met > 0
