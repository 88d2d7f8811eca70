"""A device's next life takes for known what a load has found out, and no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ipc.messages import Load
from neurond.device.backend import Resident
from neurond.device.known import Known
from neurond.device.runner import TorchBackend
from neurond.device.settings import DeviceSettings
from tests.neurond.device import tiny

SPEED = 12345.0
"""Prompt tokens a second that nobody measures here."""


def load(order: Load, numerics: str) -> tuple[Resident, str]:
    """In a life of its own; the model and its golden answer."""
    backend = TorchBackend("cpu", DeviceSettings(threads=1, numerics=numerics))
    backend.open()
    model: Resident = finish(backend.load(order))
    return model, finish(backend.golden(model))


def finish(steps: Any) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> Load:
    folder = tiny.build("llama", tmp_path_factory.mktemp("models") / "llama")
    return Load("m", str(folder), "auto", "auto", 0, {})


@pytest.mark.parametrize("numerics", ["fast", "invariant"])
def test_a_reload_answers_as_the_load_that_it_knows_of(
    order: Load, numerics: str
) -> None:
    first, golden = load(order, numerics)
    known = first.info["known"]
    again, answer = load(replace(order, known=known, alone=True), numerics)
    assert answer == golden
    assert again.info["known"] == known
    assert again.cache == first.cache
    assert again.prefill_tokens_s == first.prefill_tokens_s
    assert again.info.get("invariant_cost") == first.info.get("invariant_cost")


def test_what_is_known_is_not_found_out_again(order: Load) -> None:
    first, _ = load(order, "invariant")
    told = {**first.info["known"], "prefill_tokens_s": SPEED, "tiles": [16]}
    again, _ = load(replace(order, known=told), "invariant")
    assert again.prefill_tokens_s == SPEED
    assert again.info["known"]["tiles"] == [16] != first.info["known"]["tiles"]


def test_of_other_files_or_another_order_nothing_is_known(
    order: Load, tmp_path: Path
) -> None:
    first, _ = load(order, "fast")
    told = {**first.info["known"], "prefill_tokens_s": SPEED}
    folder = str(tiny.build("llama", tmp_path / "other"))
    for other in (replace(order, folder=folder), replace(order, dtype="float32")):
        again, _ = load(replace(other, known=told), "fast")
        assert again.prefill_tokens_s != SPEED


def test_what_is_not_understood_is_not_known() -> None:
    assert Known.of({"stamp": "a", "is_paged": True}, "a").is_paged
    assert Known.of({"stamp": "a", "is_paged": True}, "b") == Known("b")
    assert Known.of({"stamp": "a", "of_later": 1}, "a") == Known("a")
    assert Known.of({}, "a") == Known("a")
