"""Torch runs out of host memory, for real: that request ends, its company goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from ipc.messages import (
    Failed,
    Finished,
    LoadFailed,
    PromptScores,
    RingUp,
    Sampling,
)
from neurond import grammar
from neurond.device import scores
from tests.neurond.device import tiny, tinytokenizer
from tests.neurond.device.host import WORKER, Host, emitted, ends
from tests.neurond.device.rig import make_submit

OTHERS = [tuple(range(1, 30)), tuple(range(50, 62)), tuple(range(90, 150))]
VICTIM = tuple(range(200, 300))
HUGE = 1 << 46


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("model"))


@contextmanager
def hungry(host: Host, at: Callable[[Any], bool]) -> Iterator[None]:
    """The model asks for more than there is where `at` its positions.

    The same where a chunk goes through the layers in stints.
    """

    def allocate(_module: object, _args: object, named: dict[str, Any]) -> None:
        if at(named["position_ids"]):
            torch.empty(HUGE, dtype=torch.uint8)

    rotary = host.engine.models["m"].body.module.model.rotary_emb
    hook = rotary.register_forward_pre_hook(allocate, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("position", [len(VICTIM) - 1, len(VICTIM) + 3])
def test_in_prefill_and_in_decode_only_who_asked_for_it_ends(
    folder: Path, position: int
) -> None:
    """Nobody else gets to the position."""
    host = Host(prefill_chunk=32)
    host.load(folder)
    solo = [host.run(prompt, max_tokens=20)[0] for prompt in OTHERS]
    with hungry(host, lambda positions: bool((positions == position).any())):
        for number, prompt in enumerate((*OTHERS, VICTIM)):
            host.engine.submit(WORKER, make_submit(number, prompt, max_tokens=20))
        messages = host.drain()
    failed = ends(messages)[3]
    assert isinstance(failed, Failed)
    assert failed.error[0] == "insufficient_vram"
    assert "allocate" in failed.error[5][0]
    assert len(emitted(messages, 3)) == max(0, position - len(VICTIM) + 1)
    assert [emitted(messages, number) for number in range(3)] == solo
    assert host.page.read().counters["out_of_memory_total"] >= 1
    assert "model NOT marked poisoned" in host.written.getvalue()
    assert host.run(VICTIM, max_tokens=20)[0]


def test_a_grammar_hears_of_a_token_once_though_its_step_is_repeated(
    folder: Path,
) -> None:
    """The memory is missing where the last token of a chunk in stints is drawn."""
    tokenizer = tinytokenizer.write(folder)
    ticks = count(1.0, 1e-9)
    host = Host(clock=lambda: next(ticks))
    host.load(folder)
    draw, misses = host.backend._sampler.draw, [MemoryError("no room")]

    def hungry_draw(logits: Any, sequences: Any, bitmask: Any = None) -> Any:
        if misses and any(sequence.id == 2 for sequence in sequences):
            raise misses.pop()
        return draw(logits, sequences, bitmask)

    host.backend._sampler.draw = hungry_draw  # type: ignore[method-assign]
    text = grammar.write(grammar.REGEX, "[a-z]{5}[0-9]{5}[A-Z]{5}")
    host.engine.submit(WORKER, make_submit(1, (1, 2, 3), grammar=text))
    messages: list[RingUp] = []
    while len(emitted(messages, 1)) < 2:
        messages += [message for _, message in host.engine.step()]
    host.engine.submit(WORKER, make_submit(2, VICTIM, max_tokens=3))
    messages += host.drain()
    assert not misses
    assert all(isinstance(end, Finished) for end in ends(messages).values())
    answer = tokenizer.decode(emitted(messages, 1))
    assert re.fullmatch("[a-z]{5}[0-9]{5}[A-Z]{5}", answer), answer


def test_scores_of_a_step_that_is_repeated_are_those_of_any_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory is missing for the second prompt of a step."""
    whole, misses = scores.prompt_scores, [False] * 3 + [True]

    def hungry_scores(*given: Any) -> Any:
        if misses and misses.pop(0):
            raise MemoryError("no room")
        return whole(*given)

    asked = Sampling(temperature=0.0, prompt_logprobs=0)
    found = []
    for function in (whole, hungry_scores):
        monkeypatch.setattr(scores, "prompt_scores", function)
        host = Host(prefill_chunk=40)
        host.load(folder)
        for number, prompt in enumerate((VICTIM, OTHERS[0] * 3)):
            submit = make_submit(number, prompt, max_tokens=2, sampling=asked)
            host.engine.submit(WORKER, submit)
        told = [m for m in host.drain() if isinstance(m, PromptScores)]
        found.append(
            [[value for m in told if m.id == n for value in m.logprobs] for n in (0, 1)]
        )
    assert not misses
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-4)
    assert found[1][1] == pytest.approx(found[0][1], abs=1e-4)


def test_a_cache_that_the_host_has_no_room_for_fails_the_load(folder: Path) -> None:
    host = Host(kv_bytes=HUGE)
    report = host.try_load(folder)[-1]
    assert isinstance(report, LoadFailed)
    assert report.error[0] == "insufficient_vram"
    assert "allocate" in report.error[5][0]
    assert not host.engine.models
