"""Tiny models: what a load measures, and what it limits."""

from __future__ import annotations

import json
from collections.abc import Sequence as Listing
from pathlib import Path
from typing import cast

import pytest
import torch

from neurond.device.backend import CacheSpec, Resident, Work
from neurond.device.computing import Computing, Logits
from neurond.device.sequence import Sequence
from neurond.device.stopwatch import measure
from tests.neurond.device import tiny
from tests.neurond.device.host import Host

PROMPT = tuple(range(1, 40))


class Told:
    """A model that writes down what is done to it, and fails where told to."""

    spec = CacheSpec(page_tokens=16, max_pages=8)

    def __init__(self, *, fails: bool = False) -> None:
        self.log: list[tuple[str, int]] = []
        self._fails = fails

    def compute(self, works: Listing[Work]) -> Logits:
        self.log += [("compute", work.num_ids) for work in works]
        if self._fails:
            raise RuntimeError("out of order")
        return Logits(torch.zeros(1, 1), ((0, 1),))

    def release(self, sequence: Sequence) -> None:
        self.log.append(("release", len(sequence.pages)))

    def clear_pages(self, pages: Listing[int]) -> None:
        self.log.append(("clear", len(pages)))

    copy_page = save_state = load_state = None


BACK = [("release", 4), ("clear", 4)]
RUN = [("compute", 64), *BACK]


def measured(told: Told, *, context: int, target_s: float) -> float:
    model = Resident("m", context, 512, frozenset(), 0, {})
    steps = measure(model, cast(Computing, told), target_s)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            rate: float = done.value
            return rate


@pytest.mark.parametrize(
    ("context", "target_s", "runs"), [(4096, 0.0, 1), (4096, 1e9, 1), (4096, 1e-9, 3)]
)
def test_it_runs_as_often_as_matters_and_takes_everything_back(
    context: int, target_s: float, runs: int
) -> None:
    told = Told()
    assert measured(told, context=context, target_s=target_s) > 0
    assert told.log == RUN * runs


def test_a_run_that_fails_is_taken_back_too() -> None:
    told = Told(fails=True)
    with pytest.raises(RuntimeError, match="out of order"):
        measured(told, context=4096, target_s=1.0)
    assert told.log == [("compute", 64), *BACK]


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_a_load_measures_prefill_and_leaves_nothing_behind(
    tmp_path: Path, family: str
) -> None:
    folder = tiny.build(family, tmp_path)
    host = Host()
    loaded = host.load(folder)
    model = host.engine.models["m"]
    assert model.prefill_tokens_s > 0
    assert (loaded.context, loaded.info["context_limited_by"]) == (
        model.context,
        "model",
    )
    assert host.engine.rates("m").prefill_tokens_s == model.prefill_tokens_s
    assert host.run(PROMPT, max_tokens=8) == [tiny.reference(folder, PROMPT, 8)]


def test_s21_what_takes_too_long_to_prefill_is_no_longer_advertised(
    tmp_path: Path,
) -> None:
    """A millionth of a second is not enough for any prompt."""
    folder = tiny.build("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 4096
    (folder / "config.json").write_text(json.dumps(config))
    host = Host(first_token_target_s=1e-6)
    loaded = host.load(folder)
    assert loaded.context == 512
    assert loaded.info["context_limited_by"] == "prefill_rate"
    told = host.load(folder, model="asked", context=64)
    assert (told.context, told.info["context_limited_by"]) == (64, "setting")


def test_memory_limits_the_window_too(tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path)
    per_token = Host().load(folder).info["bytes_per_token"]
    loaded = Host(kv_bytes=128 * per_token).load(folder)
    assert (loaded.context, loaded.info["context_limited_by"]) == (128, "memory")
