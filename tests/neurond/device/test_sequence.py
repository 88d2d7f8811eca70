from __future__ import annotations

from typing import Any

import pytest

from ipc.messages import Finished, Sampling
from neurond.device.sequence import Sequence
from tests.neurond.device.rig import make_submit
from tests.neurond.device.test_scheduler import resident


def make(ids: tuple[int, ...] = (1, 2, 3), **more: Any) -> Sequence:
    return Sequence(1, make_submit(4, ids, **more), resident(context=10), now_s=50.0)


def test_eos_ends_and_is_not_emitted() -> None:
    sequence = make()
    assert sequence.append(5) is None
    assert sequence.append(9) == "stop"
    assert sequence.finished("stop") == Finished(4, "stop", 3, 1, 0)


def test_stop_ids_of_the_request_end_too() -> None:
    assert make(stop_ids=(5,)).append(5) == "stop"


def test_ignore_eos_leaves_the_requests_own_stop_ids() -> None:
    sequence = make(stop_ids=(5,), sampling=Sampling(ignore_eos=True))
    assert sequence.append(9) is None
    assert sequence.append(5) == "stop"


@pytest.mark.parametrize(("max_tokens", "count"), [(1, 1), (3, 3), (50, 7)])
def test_length_is_max_tokens_or_the_context(max_tokens: int, count: int) -> None:
    sequence = make(max_tokens=max_tokens)
    reasons = [sequence.append(5) for _ in range(count)]
    assert reasons == [None] * (count - 1) + ["length"]
    assert sequence.full


def test_resumed_ids_count_as_emitted() -> None:
    sequence = make((1, 2, 3, 7, 7), num_prompt=3, max_tokens=3)
    assert sequence.num_emitted == 2
    assert sequence.append(5) == "length"


def test_ends_are_banned_until_min_tokens() -> None:
    sequence = make(stop_ids=(5,), sampling=Sampling(min_tokens=2))
    assert sequence.banned_ids == {5, 9}
    sequence.append(1)
    assert sequence.banned_ids == {5, 9}
    sequence.append(1)
    assert sequence.banned_ids == frozenset()


def test_a_deadline_counts_from_arrival() -> None:
    assert make(deadline_s=2.5).expires_s == 52.5
    assert make().expires_s == 0.0
