"""Deaths of devices under the request table: what is parked goes on, exactly once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.channel import ChannelBroken
from ipc.errors import ServiceError, error_for
from ipc.messages import (
    Accepted,
    Failed,
    Finished,
    PromptScores,
    Submit,
    TokenRow,
    Tokens,
    Vector,
)
from ipc.ring import RecordTooLarge, RingFull
from neurond.serving.entries import NEXT, Entry, State
from tests.neurond.serving.lines import Heard, Line, submit
from tests.neurond.serving.tables import DEADLINE_S, DEVICE, FIRST_ID, Bench

FROM_DEVICES = [
    *("accepted", "progress", "scores", "tokens", "vector", "finished", "failed")
]
EVENTS = [*FROM_DEVICES, "down", "up", "lost", "convicted", "cancel"]
PATHS: dict[State, list[str]] = {
    State.SUBMITTED: [],
    State.ACCEPTED: ["accepted"],
    State.PARKED: ["accepted", "down"],
    State.RESUMED: ["accepted", "down", "up"],
    State.ENDED: ["accepted", "finished"],
}
UNMOVED = [
    *[(State.PARKED, event) for event in FROM_DEVICES],
    *[(state, "up") for state in State if state is not State.PARKED],
    *[(state, "lost") for state in State if state is not State.PARKED],
]
"""A dead device isn't heard; and what only parked entries are told."""


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", State)
def test_every_event_in_every_state_follows_the_table(state: State, event: str) -> None:
    bench = Bench()
    for step in PATHS[state]:
        bench.happen(step)
    heard_before, line = list(bench.heard.events), bench.line
    bench.happen(event)
    if state is State.ENDED or (state, event) in UNMOVED:
        assert bench.heard.events == heard_before
        assert bench.entry.state is state
    elif (state, event) in NEXT:
        assert bench.entry.state is NEXT[state, event]
    else:
        assert bench.entry.state is State.ENDED
        assert bench.heard.events[-1] == ("failed", "internal_error")
        assert line.cancelled == [FIRST_ID]


def test_a_cell_of_the_table_that_only_a_ring_fills_is_there_too() -> None:
    bench = Bench()
    bench.happen("down")
    bench.line = Line(2)
    bench.line.refusal = RecordTooLarge()
    bench.table.on_up(DEVICE, bench.line)
    assert bench.heard.events == [("failed", "request_too_large")]


@pytest.mark.parametrize("state", [State.SUBMITTED, State.ACCEPTED])
def test_without_resume_a_death_ends_what_the_device_had(state: State) -> None:
    bench = Bench(resume_deadline_s=0.0)
    if state is State.ACCEPTED:
        bench.happen("accepted")
    bench.happen("down")
    code = "device_fault" if state is State.ACCEPTED else "model_recovering"
    assert bench.heard.events[-1] == ("failed", code)
    assert len(bench.table) == 0


def test_what_was_emitted_is_given_back_under_the_same_id() -> None:
    bench = Bench()
    for event in ("accepted", "tokens", "down", "up"):
        bench.happen(event)
    (again,) = bench.resumed
    assert bench.line.sent == [again]
    assert (again.id, again.attempt) == (FIRST_ID, 1)
    assert (again.ids, again.num_prompt) == ((1, 2, 3, 5, 6), 3)
    assert (again.seed, again.max_tokens, again.trial_group) == (7, 100, 0)
    for event in ("accepted", "tokens", "down", "up", "accepted", "finished"):
        bench.happen(event)
    assert bench.resumed[1].ids == (1, 2, 3, 5, 6, 5, 6)
    assert bench.resumed[1].attempt == 2
    assert bench.heard.names == ["accepted", "tokens", "tokens", "finished"]


def test_one_that_was_not_accepted_yet_is_told_so_later_and_once() -> None:
    bench = Bench()
    for event in ("down", "up"):
        bench.happen(event)
    assert bench.heard.events == []
    bench.say(Accepted(FIRST_ID, 0, 3))
    bench.happen("down")
    bench.happen("up")
    bench.say(Accepted(FIRST_ID, 0, 1))
    assert bench.heard.events == [("accepted", 3)]


def test_the_first_acceptance_says_what_was_cached() -> None:
    told: list[int] = []

    class Counting(Heard):
        def on_finished(self, reason: str, cached: int) -> None:
            told.append(cached)

    for path in (["finished"], ["down", "up", "accepted", "finished"]):
        bench = Bench()
        bench.entry.sink = Counting()
        bench.say(Accepted(FIRST_ID, 0, 0))
        for event in path:
            bench.happen(event)
    assert told == [2, 0]  # the device's last word of the same attempt counts


def test_records_of_a_past_life_are_not_heard() -> None:
    bench = Bench()
    bench.happen("accepted")
    dead = bench.line
    bench.happen("down")
    row = TokenRow(FIRST_ID, 0, (9,))
    bench.table.on_message(DEVICE, dead, Tokens((row,)))
    bench.happen("up")
    bench.table.on_message(DEVICE, dead, Accepted(FIRST_ID, 0, 0))
    bench.table.on_message(DEVICE, dead, Tokens((row,)))
    assert bench.heard.names == ["accepted"]
    assert bench.entry.state is State.RESUMED


def test_a_death_parks_its_own_generation_only() -> None:
    bench = Bench()
    next_line, elsewhere = Line(2), Line(1)
    later = bench.table.submit(DEVICE, next_line, submit(), Heard())
    other = bench.table.submit("gpu-1", elsewhere, submit(), Heard())
    bench.happen("down")
    states = [bench.entry.state, later.state, other.state]
    assert states == [State.PARKED, State.SUBMITTED, State.SUBMITTED]


def test_no_score_of_a_prompt_is_told_twice() -> None:
    bench = Bench()
    bench.happen("accepted")
    bench.say(PromptScores(FIRST_ID, 1, (-1.0,), (((4, -1.0),),)))
    for event in ("down", "up", "accepted"):
        bench.happen(event)
    bench.say(PromptScores(FIRST_ID, 1, (-1.0, -2.0), (((4, -1.0),), ((5, -2.0),))))
    for event in ("down", "up", "accepted"):
        bench.happen(event)
    bench.say(PromptScores(FIRST_ID, 1, (-1.0,)))
    bench.say(PromptScores(FIRST_ID, 2, (-2.0,)))
    bench.happen("tokens")
    told = [what for name, what in bench.heard.events if name == "scores"]
    assert told == [(1, (-1.0,)), (2, (-2.0,))]
    assert bench.heard.names[-1] == "tokens"


def test_scores_with_a_gap_fail_a_resumed_entry_too() -> None:
    bench = Bench()
    for event in ("accepted", "scores", "down", "up", "accepted"):
        bench.happen(event)
    bench.say(PromptScores(FIRST_ID, 2, (-2.0,)))
    assert bench.heard.events[-1] == ("failed", "internal_error")


def test_a_vector_is_told_once() -> None:
    bench = Bench()
    for event in ("accepted", "vector", "down", "up", "accepted", "vector"):
        bench.happen(event)
    bench.happen("finished")
    assert bench.heard.names == ["accepted", "vector", "finished"]


# ---- suspects and convictions


def test_s16_a_suspect_is_tried_past_the_place_where_its_device_died() -> None:
    bench = Bench()
    other, third = bench.add(), bench.add()
    bench.happen("accepted")
    bench.happen("tokens")
    named = [(FIRST_ID, 4), (other.submit.id, 5), (7, 6)]
    bench.table.on_down(DEVICE, 1, named)
    bench.happen("up")
    trials = [(s.id, s.trial_group, s.trial_until) for s in bench.resumed]
    assert trials == [
        (FIRST_ID, 4, 4),
        (other.submit.id, 5, 2),
        (third.submit.id, 0, 0),
    ]
    bench.happen("down")
    bench.happen("up")
    assert bench.resumed[-3].trial_group == 4  # nobody has cleared it yet


def test_s16_only_a_convicted_request_ends_and_it_is_named() -> None:
    bench = Bench()
    other = bench.add()
    bench.happen("accepted")
    bench.table.on_down(DEVICE, 1, (), [FIRST_ID, 7])
    assert bench.heard.events[-1] == ("failed", "request_quarantined")
    assert [s.id for s in bench.convicted] == [FIRST_ID]
    assert other.state is State.PARKED


def test_word_of_a_death_reaches_who_was_parked_when_its_channel_broke() -> None:
    bench = Bench()
    other = bench.add()
    bench.table.on_broken(DEVICE, 1)
    bench.table.on_down(DEVICE, 1, [(FIRST_ID, 3)], [other.submit.id])
    bench.happen("up")
    assert [s.trial_group for s in bench.resumed] == [3]
    assert [s.id for s in bench.convicted] == [other.submit.id]


# ---- rings that are full, channels that break, devices that don't come back


def test_what_does_not_fit_into_the_ring_follows_when_there_is_room() -> None:
    bench = Bench()
    others = [bench.add() for _ in range(2)]
    bench.happen("down")
    bench.line = Line(2)
    bench.line.limit = 1
    bench.table.on_up(DEVICE, bench.line)
    assert bench.line.submitted == [FIRST_ID]
    assert [e.state for e in others] == [State.PARKED] * 2
    bench.line.limit = 2
    bench.happen("accepted")
    assert bench.line.submitted == [FIRST_ID, FIRST_ID + 1]
    bench.line.limit = None
    bench.table.tick()
    assert bench.line.submitted == [FIRST_ID, FIRST_ID + 1, FIRST_ID + 2]


def test_a_channel_that_breaks_at_once_parks_what_it_did_not_take() -> None:
    bench = Bench()
    bench.happen("down")
    bench.line = Line(2)
    bench.line.refusal = ChannelBroken("x")
    bench.table.on_up(DEVICE, bench.line)
    assert bench.table.parked == [bench.entry]
    bench.happen("up")
    assert bench.table.parked == []


def test_a_channel_that_breaks_under_the_same_request_ends_it_at_last() -> None:
    bench = Bench()
    for _ in range(2):
        bench.happen("accepted")
        bench.table.on_broken(DEVICE, bench.line.generation)
        bench.happen("up")
    bench.happen("accepted")
    bench.happen("tokens")  # something comes: it counts from the beginning
    for _ in range(2):
        bench.table.on_broken(DEVICE, bench.line.generation)
        bench.happen("up")
    assert bench.entry.state is State.RESUMED
    bench.table.on_broken(DEVICE, bench.line.generation)
    assert bench.heard.events[-1] == ("failed", "internal_error")


def test_who_waits_too_long_hears_of_the_fault_and_when_to_come_back() -> None:
    bench = Bench()
    bench.happen("accepted")
    bench.now_s = 50.0
    bench.happen("down")
    bench.now_s = 60.0
    bench.happen("down")
    bench.now_s = 50.0 + DEADLINE_S - 0.1
    bench.table.tick()
    assert bench.entry.state is State.PARKED
    bench.now_s = 50.0 + DEADLINE_S
    bench.table.tick()
    assert bench.heard.events[-1] == ("failed", "device_fault")
    bench.happen("up")
    assert bench.resumed == []


def test_each_death_starts_the_wait_anew() -> None:
    bench = Bench()
    for event in ("accepted", "down", "up", "accepted"):
        bench.happen(event)
    bench.now_s = DEADLINE_S
    bench.happen("down")
    bench.table.tick()
    assert bench.entry.state is State.PARKED


def test_a_parked_entry_moves_to_another_device_and_its_places_with_it() -> None:
    bench = Bench()
    bench.happen("accepted")
    other = Line(9)
    bench.table.on_up("gpu-1", other)
    bench.table.move(bench.entry, "gpu-1")
    assert other.sent == []  # it runs where it is
    bench.happen("down")
    bench.table.move(bench.entry, "gpu-1")
    assert other.submitted == [FIRST_ID]
    assert bench.table.in_flight(DEVICE) == 0
    assert bench.table.in_flight("gpu-1") == 1
    bench.table.on_message("gpu-1", other, Accepted(FIRST_ID, 0, 0))
    bench.table.on_message("gpu-1", other, Finished(FIRST_ID, "stop", 3, 0, 0))
    assert bench.heard.names == ["accepted", "finished"]
    assert bench.table.in_flight("gpu-1") == 0


def test_word_of_another_devices_death_is_not_about_who_just_moved_there() -> None:
    bench = Bench()
    bench.happen("down")
    bench.table.move(bench.entry, "gpu-1")
    bench.table.on_down("gpu-1", 1, (), [FIRST_ID])
    assert bench.table.parked == [bench.entry]


def test_nothing_is_sent_to_a_life_that_is_over() -> None:
    bench = Bench()
    other = Line(9)
    bench.table.on_up("gpu-1", other)
    bench.table.on_down("gpu-1", 9)
    bench.happen("down")
    bench.table.move(bench.entry, "gpu-1")
    assert other.sent == []


def test_who_is_cancelled_while_others_are_sent_is_not_sent() -> None:
    bench = Bench()
    second = bench.add()

    class Whole(Heard):
        def on_failed(self, error: ServiceError) -> None:
            bench.table.cancel(second)

    bench.entry.sink = Whole()
    bench.happen("down")
    line = Line(2)
    line.too_large.add(FIRST_ID)
    bench.table.on_up(DEVICE, line)
    assert line.sent == []
    assert second.state is State.ENDED
    assert len(bench.table) == 0


def test_a_device_that_is_back_without_the_model_leaves_its_requests_parked() -> None:
    bench = Bench()
    bench.happen("accepted")
    bench.now_s = 5.0
    bench.happen("down")
    bench.now_s = 10.0
    bench.happen("up")
    wire = error_for("no_healthy_node", "the model is not loaded here").to_wire()
    bench.say(Failed(FIRST_ID, wire))
    assert bench.table.parked == [bench.entry]
    other = Line(4)
    bench.table.on_up("gpu-1", other)
    bench.table.move(bench.entry, "gpu-1")
    assert other.submitted == [FIRST_ID]
    bench.table.on_message("gpu-1", other, Accepted(FIRST_ID, 0, 0))
    bench.table.on_message("gpu-1", other, Failed(FIRST_ID, wire))  # it is unloaded
    assert bench.heard.events[-1] == ("failed", "no_healthy_node")


def test_a_part_of_a_request_under_way_waits_with_the_rest() -> None:
    bench = Bench()
    bench.happen("down")
    bench.line.refusal = ChannelBroken("gone")
    with pytest.raises(ServiceError) as caught:
        bench.add()
    assert caught.value.code == "model_recovering"
    late = bench.table.submit(DEVICE, bench.line, submit(), Heard(), may_park=True)
    assert late.state is State.PARKED
    gone = bench.line
    bench.happen("up")
    assert bench.line.submitted == [FIRST_ID, late.submit.id]
    more = bench.table.submit(DEVICE, gone, submit(), Heard(), may_park=True)
    assert more.state is State.RESUMED


def test_a_cancel_while_parked_leaves_nothing_to_resume() -> None:
    bench = Bench()
    for event in ("accepted", "down", "cancel", "up"):
        bench.happen(event)
    assert bench.resumed == []
    assert len(bench.table) == bench.table.in_flight(DEVICE) == 0


def test_parked_entries_take_places_of_the_worker() -> None:
    bench = Bench(max_entries=1)
    bench.happen("down")
    with pytest.raises(ServiceError) as caught:
        bench.table.check_room()
    assert caught.value.code == "queue_full"


# ---- any order


class Life:
    """A device that answers as the model would, from whatever ids it is given."""

    def __init__(self, line: Line, num_tokens: int) -> None:
        self.line = line
        self.num_tokens = num_tokens
        self.accepted: set[int] = set()
        self.emitted: dict[int, int] = {}

    def say(self, pick: int) -> Any:
        """The next record of one of its requests; None when it has nothing."""
        gone = set(self.line.cancelled)
        asked = [m for m in self.line.sent if isinstance(m, Submit)]
        mine = [s for s in asked if s.id not in gone and self.emitted.get(s.id, 0) >= 0]
        if not mine:
            return None
        chosen = mine[pick % len(mine)]
        if chosen.id not in self.accepted:
            self.accepted.add(chosen.id)
            self.emitted[chosen.id] = len(chosen.ids) - chosen.num_prompt
            return Accepted(chosen.id, 0, 0)
        start = self.emitted[chosen.id]
        if start == self.num_tokens:
            self.emitted[chosen.id] = -1
            return Finished(chosen.id, "length", 3, start, 0)
        ids = tuple(range(start, min(start + 1 + pick % 2, self.num_tokens)))
        self.emitted[chosen.id] = start + len(ids)
        return Tokens((TokenRow(chosen.id, start, ids),))


STEPS = st.tuples(
    st.sampled_from(["say"] * 8 + ["down", "up", "up", "full", "room", "broken"]),
    st.integers(0, 11),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=120))
def test_any_deaths_lose_nothing_and_repeat_nothing(steps: list[Any]) -> None:
    num_tokens = 6
    bench = Bench()
    sinks = [bench.heard, Heard(), Heard()]
    entries = [bench.entry, bench.add(sinks[1]), bench.add(sinks[2])]
    life = Life(bench.line, num_tokens)
    for what, number in [*steps, ("room", 0), ("down", 0), ("up", 0)]:
        life = _happen(bench, life, what, number)
    while (record := life.say(0)) is not None:
        bench.say(record)
    for entry, heard in zip(entries, sinks, strict=True):
        assert entry.state is State.ENDED
        _check_whole(entry, heard, num_tokens)
    assert len(bench.table) == bench.table.in_flight(DEVICE) == 0


def _happen(bench: Bench, life: Life, what: str, number: int) -> Life:
    match what:
        case "say":
            record = life.say(number)
            if record is not None:
                bench.say(record)
        case "down":
            suspects = [(FIRST_ID + number % 3, number + 1)]
            bench.table.on_down(DEVICE, bench.line.generation, suspects)
        case "up":
            bench.table.on_down(DEVICE, bench.line.generation)
            bench.happen("up")
            return Life(bench.line, life.num_tokens)
        case "full":
            bench.line.refusal = RingFull()
        case "room":
            bench.line.refusal = None
        case "broken":
            bench.table.on_broken(DEVICE, bench.line.generation)
    return life


def _check_whole(entry: Entry, heard: Heard, num_tokens: int) -> None:
    """All of it once and in order, or given up for channels that broke, and only
    then with less."""
    told = [t for name, ids in heard.events if name == "tokens" for t in ids]  # type: ignore[attr-defined]
    assert told == list(range(len(told)))
    terminal = [n for n in heard.names if n in ("finished", "failed")]
    assert len(terminal) == 1
    assert heard.names[-1] == terminal[0]
    assert heard.names.count("accepted") <= 1
    if terminal == ["finished"]:
        assert len(told) == num_tokens
    else:
        assert heard.events[-1] == ("failed", "internal_error")
        assert entry.num_breaks > 2


def test_a_vector_without_an_end_is_asked_for_again() -> None:
    bench = Bench()
    bench.happen("accepted")
    bench.say(Vector(FIRST_ID, b"\0" * 8))
    bench.happen("down")
    bench.happen("up")
    assert bench.resumed[0].ids == (1, 2, 3)
