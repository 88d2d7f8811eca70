"""The program for GPUs runs whole on a tiny shape, where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import gpu_engine

FIGURES = ("step_1_s", "step_16_s", "step_64_s", "prefill_gap_s", "load_gap_s")


def test_each_figure_of_the_gpu_program_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    argv = ["--shape", "tiny", "--device", "cpu", "--rounds", "1", "--out", str(out)]
    assert gpu_engine.main(argv) == 0
    report = json.loads(out.read_text())
    assert all(0 < report[name] < 60 for name in FIGURES), report
    assert report["load_gap_s"] >= report["quiet_gap_s"]
    assert report["prefill_tokens_s"] > 0
    assert report["invariant"] == "proven"


def test_without_a_device_it_says_so_and_ends_well(
    capsys: pytest.CaptureFixture[str],
) -> None:
    if gpu_engine.torch.cuda.is_available():
        pytest.skip("there is one")
    assert gpu_engine.main([]) == 0
    assert "no CUDA device" in capsys.readouterr().out
