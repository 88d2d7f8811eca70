"""The tables of states and events, cell by cell."""

from __future__ import annotations

import pytest

from neurond import states
from neurond.states import (
    DeviceEvent,
    DeviceState,
    IllegalTransition,
    ModelEvent,
    ModelStatus,
    next_device_state,
    next_model_status,
)

DEVICE_CELLS = """
    absent    spawn    starting
    absent    stop     stopped
    starting  serving  ready
    starting  kill     dying
    starting  exited   backoff
    starting  stop     stopping
    ready     kill     dying
    ready     exited   backoff
    ready     stop     stopping
    dying     exited   backoff
    dying     kill     dying
    dying     give_up  failed
    dying     stop     stopping
    backoff   spawn    starting
    backoff   give_up  failed
    backoff   stop     stopped
    failed    reset    backoff
    failed    exited   failed
    failed    stop     stopped
    stopping  kill     stopping
    stopping  stop     stopping
    stopping  exited   stopped
    stopped   stop     stopped
    stopped   exited   stopped
"""
MODEL_CELLS = """
    unloaded    load         loading
    unloaded    failed       unloaded
    unloaded    loaded       unloaded
    unloaded    device_lost  unloaded
    failed      load         loading
    failed      failed       failed
    failed      loaded       failed
    failed      unload       unloaded
    failed      device_lost  failed
    loading     convert      converting
    loading     loaded       loaded
    loading     failed       failed
    loading     unload       unloading
    loading     device_lost  loading
    converting  load         loading
    converting  failed       failed
    converting  unload       unloading
    converting  device_lost  converting
    loaded      unload       unloading
    loaded      loaded       loaded
    loaded      device_lost  recovering
    loaded      failed       failed
    recovering  loaded       loaded
    recovering  failed       failed
    recovering  unload       unloading
    recovering  device_lost  recovering
    unloading   unloaded     unloaded
    unloading   loaded       unloading
    unloading   failed       unloaded
    unloading   device_lost  unloaded
"""


def cells(table: str) -> list[tuple[str, str, str]]:
    rows = [line.split() for line in table.strip().splitlines()]
    return [(state.upper(), event.upper(), then.upper()) for state, event, then in rows]


@pytest.mark.parametrize(("state", "event", "then"), cells(DEVICE_CELLS))
def test_a_device_moves_as_its_cell_says(state: str, event: str, then: str) -> None:
    moved = next_device_state(DeviceState[state], DeviceEvent[event])
    assert moved is DeviceState[then]


@pytest.mark.parametrize(("status", "event", "then"), cells(MODEL_CELLS))
def test_a_model_moves_as_its_cell_says(status: str, event: str, then: str) -> None:
    moved = next_model_status(ModelStatus[status], ModelEvent[event])
    assert moved is ModelStatus[then]


def test_every_missing_cell_of_a_device_is_refused() -> None:
    drawn = {(DeviceState[s], DeviceEvent[e]) for s, e, _ in cells(DEVICE_CELLS)}
    missing = {(s, e) for s in DeviceState for e in DeviceEvent} - drawn
    assert drawn == set(states.DEVICE)
    for state, event in missing:
        with pytest.raises(IllegalTransition, match=f"device {state}: {event}"):
            next_device_state(state, event)


def test_every_missing_cell_of_a_model_is_refused() -> None:
    drawn = {(ModelStatus[s], ModelEvent[e]) for s, e, _ in cells(MODEL_CELLS)}
    missing = {(s, e) for s in ModelStatus for e in ModelEvent} - drawn
    assert drawn == set(states.MODEL)
    for status, event in missing:
        with pytest.raises(IllegalTransition, match=f"model {status}: {event}"):
            next_model_status(status, event)


def test_every_state_but_the_first_can_be_reached() -> None:
    assert set(states.DEVICE.values()) == set(DeviceState) - {DeviceState.ABSENT}
    assert set(states.MODEL.values()) == set(ModelStatus)


def test_a_device_can_be_stopped_in_every_state() -> None:
    for state in DeviceState:
        next_device_state(state, DeviceEvent.STOP)


def test_the_pause_is_none_after_a_productive_life_and_doubles_up_to_a_bound() -> None:
    pauses = [states.pause_s(lives) for lives in range(12)]
    assert pauses[:4] == [0.0, 0.25, 0.5, 1.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == states.LONGEST_PAUSE_S


def test_a_device_is_hopeless_at_the_fifth_unproductive_life() -> None:
    assert [states.is_hopeless(n) for n in (0, 4, 5, 6)] == [False, False, True, True]
