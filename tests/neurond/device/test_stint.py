"""A chunk that pauses between layers gives what it gives in one piece."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ipc.messages import PromptScores, Sampling
from neurond.device import stint
from tests.neurond.device import tiny
from tests.neurond.device.host import WORKER, Host, emitted, ends
from tests.neurond.device.rig import make_submit

LONG = tuple(7 * i % 500 for i in range(400))
SHORT = tuple(11 * i % 490 for i in range(9))
LATER = tuple(13 * i % 480 for i in range(300))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("llama"))


def make(folder: Path, **settings: Any) -> Host:
    """A pause behind every layer, once a stream has decoded: by the engine's clock its
    steps take next to nothing, so every layer is too long for one."""
    ticks = count(1.0, 1e-9)
    host = Host(clock=lambda: next(ticks), prefix_cache=False, **settings)
    host.load(folder)
    assert host.engine.models["m"].pauses
    return host


def ask(host: Host, request: int, ids: tuple[int, ...], **more: Any) -> None:
    more = {"sampling": Sampling(temperature=0.0, ignore_eos=True), **more}
    host.engine.submit(WORKER, make_submit(request, ids, **more))


def step_until(host: Host, condition: Callable[[], object]) -> list[Any]:
    messages = []
    while not condition():
        messages += [message for _, message in host.engine.step()]
    return messages


def open_chunks(host: Host) -> list[int]:
    return [s.id for s in host.engine.roster.running if s.open_ids]


def begin(host: Host) -> list[Any]:
    """A stream that decodes, and beside it a prompt in the middle of a chunk."""
    ask(host, 1, SHORT, max_tokens=60)
    before = step_until(host, lambda: host.engine.rates("m").decode_steps_s)
    ask(host, 2, LONG, max_tokens=8)
    return before + step_until(host, lambda: open_chunks(host))


def model_of(host: Host) -> Any:
    return host.engine.models["m"]


def solo(folder: Path, ids: tuple[int, ...], num_tokens: int) -> list[int]:
    host = make(folder)
    greedy = Sampling(temperature=0.0, ignore_eos=True)
    return host.run(ids, max_tokens=num_tokens, sampling=greedy)[0]


def test_streams_decode_between_the_layers_and_all_answers_are_solo_answers(
    folder: Path,
) -> None:
    host = make(folder)
    messages = begin(host)
    beside = emitted(messages, 1)
    messages += step_until(host, lambda: not open_chunks(host))
    assert len(emitted(messages, 1)) > len(beside)
    ask(host, 3, SHORT[:5], max_tokens=4)
    messages += host.drain()
    assert emitted(messages, 1) == solo(folder, SHORT, 60)
    assert emitted(messages, 2) == solo(folder, LONG, 8)
    assert emitted(messages, 3) == solo(folder, SHORT[:5], 4)


def test_a_chunk_whose_streams_have_ended_is_finished(folder: Path) -> None:
    host = make(folder)
    messages = begin(host)
    host.engine.cancel(WORKER, 1)
    messages += host.drain()
    assert emitted(messages, 2) == solo(folder, LONG, 8)


def test_who_leaves_in_the_middle_of_a_chunk_leaves_nothing(folder: Path) -> None:
    host = make(folder)
    begin(host)
    host.engine.cancel(WORKER, 2)
    ask(host, 3, LATER, max_tokens=8)
    messages = host.drain()
    assert emitted(messages, 3) == solo(folder, LATER, 8)
    assert 2 not in ends(messages)
    assert host.page.read().gauges["kv_used_bytes"] == 0


def test_preempted_in_the_middle_of_a_chunk_it_is_computed_again(folder: Path) -> None:
    host = make(folder)
    messages = begin(host)
    sequence = next(s for s in host.engine.roster.running if s.id == 2)
    host.engine._seats.preempt(sequence)
    assert sequence.open_ids == 0
    messages += host.drain()
    assert emitted(messages, 1) == solo(folder, SHORT, 60)
    assert emitted(messages, 2) == solo(folder, LONG, 8)


def test_a_layer_that_raises_begins_the_chunk_anew_and_streams_lose_nothing(
    folder: Path,
) -> None:
    host = make(folder)
    messages = begin(host)
    lean = stint._forward(model_of(host).body.module)
    whole, failures = lean._layers[-1], [ValueError("a size is wrong")] * 2

    def broken(hidden: Any, **more: Any) -> Any:
        if hidden.shape[1] > 1 and failures:
            raise failures.pop()
        return whole(hidden, **more)

    lean._layers[-1] = broken
    messages += host.drain()
    lean._layers[-1] = whole
    assert not failures
    assert emitted(messages, 1) == solo(folder, SHORT, 60)
    assert emitted(messages, 2) == solo(folder, LONG, 8)


def test_a_prompt_is_scored_in_stints_as_in_one_piece(folder: Path) -> None:
    scored = Sampling(temperature=0.0, ignore_eos=True, prompt_logprobs=0)
    alone = make(folder)
    ask(alone, 2, LONG, max_tokens=1, sampling=scored)
    wanted = scores(alone.drain())
    host = make(folder)
    ask(host, 1, SHORT, max_tokens=60)
    step_until(host, lambda: host.engine.rates("m").decode_steps_s)
    ask(host, 2, LONG, max_tokens=1, sampling=scored)
    messages = step_until(host, lambda: open_chunks(host))
    found = scores(messages + host.drain())
    assert len(found) == len(wanted) == len(LONG) - 1
    assert found == pytest.approx(wanted, abs=1e-3)


def scores(messages: list[Any]) -> list[float]:
    told = [m for m in messages if isinstance(m, PromptScores) and m.id == 2]
    return [number for message in told for number in message.logprobs]
