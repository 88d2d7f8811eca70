"""Other people's Python in slices: hand-over, results, and an end in the middle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from neurond.device.turns import in_background, in_turns


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
    # a slice is shorter than one round of the work, so the two alternate
    assert log == ["thread", "loop"] * 5


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
