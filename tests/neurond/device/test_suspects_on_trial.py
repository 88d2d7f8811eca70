from __future__ import annotations

from collections.abc import Sequence as Listing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.messages import Finished
from ipc.status import PageView, Phase
from neurond.device.backend import Outcome, Work
from neurond.device.scheduler import computes_for
from neurond.device.sequence import Sequence
from tests.neurond.device.rig import make_submit
from tests.neurond.device.simulated import Simulation
from tests.neurond.device.test_scheduler import resident

PROMPT = 40


def ids_of(number: int, count: int = PROMPT) -> tuple[int, ...]:
    """A prompt that it shares with nobody."""
    return (number, *(n % 250 for n in range(1, count)))


def resumed(
    sim: Simulation, number: int, group: int, emitted: int = 0, size: int = PROMPT
) -> None:
    """As a worker submits a suspect again; it is to emit twelve tokens in all."""
    prompt = ids_of(number, size)
    ids = (*prompt, *b"w0 w1 w2 w3"[:emitted])
    sim.ask(
        number,
        ids,
        num_prompt=len(prompt),
        attempt=1,
        max_tokens=12,
        trial_group=group,
        trial_until=emitted + 2 if group else 0,
    )


def steps(sim: Simulation) -> list[set[int]]:
    return [{number for number, _ in step} for step in sim.backend.steps]


def test_s16_a_suspect_is_computed_alone_until_its_trial_is_over() -> None:
    sim = Simulation()
    sim.ask(1, ids_of(1), max_tokens=200)
    sim.step(3)
    sim.backend.steps.clear()
    resumed(sim, 2, group=7, emitted=3)
    while len(sim.rows(2)) < 2:
        sim.step()
    on_trial = steps(sim)
    assert all(len(step) == 1 for step in on_trial)
    assert {1} in on_trial
    assert {2} in on_trial
    sim.backend.steps.clear()
    sim.step(3)
    assert steps(sim) == [{1, 2}] * 3


def test_s16_innocents_go_on_between_the_steps_of_a_trial() -> None:
    sim = Simulation(settings={"prefill_chunk": 8})
    sim.ask(1, ids_of(1, 4), max_tokens=200)
    sim.step(2)
    sim.backend.steps.clear()
    for number in (2, 3):
        resumed(sim, number, group=number)
    sim.step(18)
    turns = [next(iter(step)) for step in steps(sim)]
    assert all(turns[at : at + 3].count(1) == 1 for at in range(15)), turns


def test_a_group_is_computed_together() -> None:
    sim = Simulation()
    for number in (1, 2, 3):
        resumed(sim, number, group=4, emitted=2)
    resumed(sim, 9, group=5)
    sim.step(4)
    assert steps(sim) == [{1, 2, 3}, {9}] * 2


def test_a_step_on_trial_is_armed_as_one_with_its_own_ids() -> None:
    sim = Simulation(settings={"prefill_deadline_s": 70.0, "decode_deadline_s": 20.0})
    seen: list[PageView] = []
    forward = sim.backend.forward

    def looking(works: Listing[Work]) -> list[Outcome]:
        seen.append(sim.page.read())
        return forward(works)

    sim.backend.forward = looking  # type: ignore[method-assign]
    resumed(sim, 1, group=4, emitted=2)
    sim.ask(2, ids_of(2), max_tokens=8)
    sim.drain()
    trial = [view for view in seen if view.phase is Phase.TRIAL]
    assert [view.requests for view in trial] == [(1,), (1,)]
    spans = [view.deadline_s - view.since_s for view in trial]
    assert spans == [pytest.approx(70.0), pytest.approx(20.0)]
    others = [view.requests for view in seen if view.phase is not Phase.TRIAL]
    assert others[0] == (2,)
    assert (1, 2) in others or (2, 1) in others


def test_nobody_waits_for_the_prompt_of_a_suspect() -> None:
    model = resident()
    suspect, other = (
        Sequence(1, make_submit(number, (5,) * 50, **more), model, 0.0)
        for number, more in ((1, {"trial_group": 3, "trial_until": 2}), (2, {}))
    )
    third = Sequence(1, make_submit(3, (5,) * 50), model, 0.0)
    assert computes_for(other, third) == 49
    assert computes_for(other, suspect) == computes_for(suspect, other) == 0


def test_a_request_that_comes_again_is_never_refused_for_the_queue() -> None:
    limits = {"max_running": 1, "max_queue": 1, "queue_deadline_s": 5.0}
    sim = Simulation(settings=limits)
    for number in (1, 2, 3):
        sim.ask(number, ids_of(number), max_tokens=30)
        sim.step()
    assert sim.code(3) == "queue_full"
    for number in (4, 5):
        resumed(sim, number, group=0, emitted=4)
    sim.now_s += 6.0
    sim.drain()
    assert sim.code(2) == "overloaded"
    ends = [sim.ended(number) for number in (1, 4, 5)]
    assert [type(end) for end in ends] == [Finished] * 3


def test_who_comes_again_is_seated_before_those_who_never_had_a_seat() -> None:
    sim = Simulation(settings={"max_running": 1})
    for number in (1, 2):
        sim.ask(number, ids_of(number))
    sim.step()
    resumed(sim, 3, group=0, emitted=1)
    sim.drain()
    order = [m.id for m in sim.messages if isinstance(m, Finished)]
    assert order == [1, 3, 2]


def test_s16_the_large_prompt_of_a_suspect_pauses_for_innocents() -> None:
    num_paused = 0
    for seed in range(1, 6):
        sim = Simulation(step_ms=5, token_ms=0.5, page_tokens=8, pauses=seed)
        sim.ask(1, ids_of(1, 4), max_tokens=90)
        sim.step(8)
        for number in (2, 3, 4):
            resumed(sim, number, group=number % 2 + 1, size=700)
        longest = waited = 0
        while not all(sim.ended(number) for number in (2, 3, 4)):
            before = len(sim.ids(1))
            sim.step()
            waited = waited + 1 if len(sim.ids(1)) == before else 0
            longest = max(longest, 0 if sim.ended(1) else waited)
        assert longest <= 2
        sim.drain()
        texts = [bytes(sim.ids(number)) for number in (2, 3, 4)]
        assert texts == [b"w0 w1 w2 w3 "] * 3
        sim.check_nothing_is_held()
        num_paused += sim.backend.num_paused
    assert num_paused > 10


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 80)),
        min_size=1,
        max_size=10,
    ),
    st.sampled_from([{}, {"pages": 14}, {"page_tokens": 4, "state_bytes": 8}]),
)
def test_s16_a_step_is_of_one_group_and_the_groups_take_turns(
    told: list[tuple[int, int, int]], options: dict[str, int]
) -> None:
    """Whatever the prompts are, and with little room."""
    sim = Simulation(settings={"prefill_chunk": 16, "max_running": 4}, **options)
    for number, (group, emitted, size) in enumerate(told, start=1):
        ids = ids_of(number, size)
        sim.ask(
            number,
            (*ids, *b"w0 w1 w2 w3"[:emitted]),
            num_prompt=len(ids),
            attempt=1,
            max_tokens=12,
            trial_group=group,
            trial_until=emitted + 2,
        )
    waited: dict[int, int] = {}
    while sim.engine.busy:
        groups = {s.id: s.trial_group for s in sim.engine.roster}
        before = len(sim.backend.steps)
        sim.step()
        running = {groups[s.id] for s in sim.engine.roster.running if s.id in groups}
        for step in sim.backend.steps[before:]:
            assert len({groups[number] for number, _ in step}) == 1
            turn = groups[step[0][0]]
            for group in running - {turn}:
                waited[group] = waited.get(group, 0) + 1
                assert waited[group] <= 8, (group, sim.backend.steps)
            waited[turn] = 0
    for number, (_, emitted, _size) in enumerate(told, start=1):
        assert isinstance(sim.ended(number), Finished)
        rows = [token for row in sim.rows(number) for token in row.ids]
        assert bytes(rows) == b"w0 w1 w2 w3 "[emitted:]
    sim.check_nothing_is_held()
