"""What a gateway's processes load: they run on hosts without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "numpy", "tokenizers")


@pytest.mark.parametrize(
    "module",
    [
        "cortexd.__main__",
        "cortexd.app",
        "cortexd.fleet.__main__",
        "cortexd.frontend",
        "cortexd.metrics",
    ],
)
def test_a_fresh_interpreter_loads_no_torch(module: str) -> None:
    script = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"

    said = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    assert said.stdout == "[]\n"
