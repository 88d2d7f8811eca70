"""Tiny models: what a load measures, and what it limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.neurond.device import tiny
from tests.neurond.device.host import Host

PROMPT = tuple(range(1, 40))


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
