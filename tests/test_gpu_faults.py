"""The program that breaks GPUs runs whole on the fake device, where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import gpu_faults


def run(out: Path, *more: str) -> dict[str, dict[str, object]]:
    gpu_faults.main(["--out", str(out), *more])
    rows: dict[str, dict[str, object]] = json.loads(out.read_text())["faults"]
    return rows


def test_a_fault_is_followed_to_the_end_of_the_stream(tmp_path: Path) -> None:
    kinds = ("device_assert", "sigkill", "oom")
    rows = run(tmp_path / "out", "--device", "fake", "--kinds", *kinds)
    assert [rows[kind]["met"] for kind in kinds] == [True] * 3, rows
    assert rows["device_assert"]["code"] == 710
    assert rows["sigkill"]["exit_code"] == -9


def test_without_a_device_it_says_so_and_ends_well(
    capsys: pytest.CaptureFixture[str],
) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is one")
    assert gpu_faults.main([]) == 0
    assert "no CUDA device" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.parametrize("kind", gpu_faults.KINDS)
def test_a_context_that_is_really_broken_is_seen_as_such(
    tmp_path: Path, kind: str
) -> None:
    more = ("--device", "cuda", "--shape", "tiny", "--kinds", kind)
    row = run(tmp_path / "out", *more)[kind]
    assert row["met"], row
