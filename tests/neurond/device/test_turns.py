"""Other people's Python in slices: hand-over, results, and an end in the middle."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Generator
from typing import cast

import pytest
import torch

from neurond.device.turns import clock, in_background, in_one_go, in_turns


def finish(steps: object) -> object:
    try:
        while True:
            next(steps)  # type: ignore[call-overload]
    except StopIteration as stop:
        return stop.value


def helpers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("load")]


def work(until: int, log: list[str]) -> str:
    for _ in range(until):
        spun_s = time.thread_time() + 0.02
        while time.thread_time() < spun_s:
            pass
        log.append("thread")
        torch.zeros(1)
    return "done"


@pytest.mark.parametrize("run", [in_turns, in_background])
def test_a_calls_result_and_error_come_through(run: Callable[..., object]) -> None:
    nothing: dict[str, int] = {}
    assert finish(run(lambda: 7)) == 7
    with pytest.raises(KeyError, match="lost"):
        finish(run(lambda: nothing["lost"]))
    assert not helpers()


def test_the_call_stops_at_torch_calls_and_runs_only_in_its_turn() -> None:
    log: list[str] = []
    steps = in_turns(lambda: work(5, log))
    for _ in steps:
        log.append("loop")
    assert log.count("thread") == 5
    # a slice is shorter than one round of the work; on a busy host also than none
    assert ("thread", "thread") not in itertools.pairwise(log)


def test_a_default_dtype_of_the_call_is_never_seen_by_the_loop() -> None:
    inside: list[torch.dtype] = []

    def call() -> None:
        torch.set_default_dtype(torch.bfloat16)
        work(3, [])
        inside.append(torch.zeros(1).dtype)
        torch.set_default_dtype(torch.float32)

    seen = [torch.get_default_dtype() for _ in in_turns(call)]
    assert set(seen) == {torch.float32}
    assert inside == [torch.bfloat16]


def test_a_call_that_nobody_wants_ends_at_its_next_torch_call() -> None:
    log: list[str] = []
    steps = in_turns(lambda: work(1000, log))
    next(steps)
    steps.close()
    assert len(log) == 1
    assert not helpers()


def test_a_helper_beside_the_loop_is_waited_for_when_it_is_given_up() -> None:
    goes_on = threading.Event()
    ended: list[bool] = []
    steps = in_background(lambda: ended.append(goes_on.wait(5)))
    next(steps)
    goes_on.set()
    steps.close()
    assert ended == [True]
    assert not helpers()


class Stuck:
    """A call with a torch call that lasts until it is let go."""

    def __init__(self) -> None:
        self.go_on, self.is_out, self.is_past = (threading.Event() for _ in range(3))
        self.priorities: list[int] = []

    def __call__(self) -> str:
        self.priorities.append(os.getpriority(os.PRIO_PROCESS, 0))
        torch.zeros(1).apply_(self._wait)
        self.is_past.set()
        self.priorities.append(os.getpriority(os.PRIO_PROCESS, 0))
        return "done"

    def _wait(self, number: float) -> float:
        assert self.go_on.wait(5)
        self.is_out.set()
        return number


def test_a_long_torch_call_goes_on_beside_the_loop_as_far_as_its_end() -> None:
    stuck = Stuck()
    steps = in_turns(stuck, overlaps=True)
    next(steps)  # comes back although the call doesn't
    next(steps)
    stuck.go_on.set()
    assert stuck.is_out.wait(5)
    assert not stuck.is_past.wait(0.05)  # until it is given a turn
    assert finish(steps) == "done"
    assert not helpers()


def test_whoever_is_beside_the_loop_stands_back() -> None:
    stuck = Stuck()
    steps = in_turns(stuck, overlaps=True)
    next(steps)
    stuck.go_on.set()
    finish(steps)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert stuck.priorities == [own, min(19, own + 10)]

    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, 0)

    assert finish(in_turns(priority, overlaps=True)) == own
    assert finish(in_background(priority)) == min(19, own + 10)


def test_a_call_beside_the_loop_that_nobody_wants_ends_with_its_torch_call() -> None:
    stuck = Stuck()
    steps = in_turns(stuck, overlaps=True)
    next(steps)
    stuck.go_on.set()
    steps.close()
    assert not stuck.is_past.is_set()
    assert not helpers()


def test_its_clock_leaves_out_what_the_loop_does_between_turns() -> None:
    def call() -> float:
        begun_s = clock()
        work(3, [])
        return clock() - begun_s

    between_s, begun_s = 0.0, clock()
    steps = in_turns(call)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            seconds = done.value
            break
        left_s = clock()
        work(2, [])
        between_s += clock() - left_s
    assert between_s >= 0.08
    assert 0.06 <= seconds <= clock() - begun_s - between_s


def test_in_one_go_calls_run_whole_where_the_loop_does() -> None:
    def both() -> Generator[None, None, list[int]]:
        first = yield from in_turns(threading.get_ident)
        second = yield from in_turns(threading.get_ident)
        return [first, second]

    here = threading.get_ident()
    assert finish(in_one_go(both())) == [here, here]
    assert here not in cast(list[int], finish(both()))


def test_what_begins_outside_of_it_runs_in_turns() -> None:
    """Of two loads only one is alone."""
    alone = in_one_go(in_turns(threading.get_ident))
    next(alone)
    assert finish(in_turns(threading.get_ident)) != threading.get_ident()
    assert finish(alone) == threading.get_ident()
