"""A GPU's context is really broken, and what a node does then is measured.

    python -m bench.gpu_faults [--shape 1b]
    python -m bench.gpu_faults --device fake --kinds device_assert   as a test of itself

A device process of its own with a model of random weights; for every kind of fault a
stream runs, the fault is ordered for a step in its middle, and the process is followed
to its end. Then the next life: context, load, golden result, the rest of the stream.
`hang` spins in a kernel until its deadline, and the process is killed. ECC and NVLink
errors can't be had from a healthy GPU; they are simulated in the process.

    detect_s       from the last token to the end of the process, or to its deadline
    gone_s         from the kill to the end of the process
    memory_s       until a new process sees as much free memory as before
    context_s      start of the next process to its hello
    load_s         the load, golden result included
    first_token_s  of the stream that goes on

Goal: every fault is seen as what it is, every golden result is the first one's, and
every stream goes on with the ids of an undisturbed run. On CUDA the figures go to
bench/results/gpu_faults.json. Ends with 0 where there is no device.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.devicelife import DeviceLife
from ipc.messages import Fault, Hello, Loaded
from neurond.device import fakemodel

RESULTS = Path(__file__).parent / "results" / "gpu_faults.json"
CODES = {
    "device_assert": {710},
    "illegal_access": {700},
    "launch_failure": {715, 719},
    "ecc": {214},
    "nvlink": {220},
}
SIGNALS = {"hang": signal.SIGKILL, "sigkill": signal.SIGKILL}
SURVIVED = ("oom", "shape")
KINDS = (*CODES, *SIGNALS, *SURVIVED)

_PROMPT = tuple(range(1, 17))
_TOKENS = 64
_AT_STEP = 24
_SETTINGS = {
    "injection": True,
    "threads": 1,
    "decode_deadline_s": 2.0,
    "kv_bytes": 1 << 28,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=("8b", "1b", "tiny"), default="1b")
    parser.add_argument("--device", choices=("cuda", "cpu", "fake"), default="cuda")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    if options.device == "cuda" and not Path("/dev/nvidiactl").exists():
        print("no CUDA device here: nothing is broken (--device fake is for a test)")
        return 0
    with tempfile.TemporaryDirectory(prefix="cortex-bench-") as folder:
        model = make_model(options.device, options.shape, Path(folder) / "model")
        bench = Bench(options.device, model)
        rows = {kind: bench.measure(kind) for kind in options.kinds}
    report = {"kernel": platform.release(), "device": options.device, "faults": rows}
    print_table(rows)
    out = options.out or (RESULTS if options.device == "cuda" else None)
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(row["met"] for row in rows.values()) else 1


def make_model(device: str, shape: str, folder: Path) -> Path:
    if device == "fake":
        return fakemodel.build(folder)
    import torch

    from bench import checkpoint
    from bench.shapes import SHAPES

    checkpoint.write(folder, SHAPES[shape].config(), torch.bfloat16)
    return folder


class Bench:
    """Lives of one device, one after the other; `golden` and `ids` are the first's."""

    def __init__(self, device: str, folder: Path) -> None:
        self._device, self._folder = device, folder
        self._generation = 0
        life, times = self._live(0)
        self._golden = times["golden"]
        life.ask(1, _PROMPT, len(_PROMPT), _TOKENS)
        life.until(lambda: life.ended(1), "undisturbed stream")
        self._ids = life.ids(1)
        life.close()

    def measure(self, kind: str) -> dict[str, Any]:
        life, before = self._live(0)
        life.inject(kind, at_step=_AT_STEP)
        life.ask(1, _PROMPT, len(_PROMPT), _TOKENS)
        end = self._followed(life, kind)
        found = life.ids(1)
        life.close()
        if kind in SURVIVED:
            return {**end, "met": end["code"] is None}
        asked_s = time.monotonic()
        after, times = self._live(before["free_bytes"])
        after.ask(1, (*_PROMPT, *found), len(_PROMPT), _TOKENS)
        first_s = time.monotonic()
        after.until(lambda: bool(after.ids(1)), "first token")
        times["first_token_s"] = time.monotonic() - first_s
        after.until(lambda: after.ended(1), "the rest of the stream")
        row = {
            **end,
            **times,
            "pause_s": end["detect_s"] + time.monotonic() - asked_s,
            "golden_same": times["golden"] == self._golden,
            "ids_same": [*found, *after.ids(1)] == self._ids,
        }
        after.close()
        met = row["as_expected"] and row["golden_same"] and row["ids_same"]
        return {**row, "met": met}

    def _live(self, wanted_bytes: int) -> tuple[DeviceLife, dict[str, Any]]:
        """A life with its model loaded; waits for `wanted_bytes` of free memory."""
        self._generation += 1
        begun_s = time.monotonic()
        life = DeviceLife(self._device, self._generation, **_SETTINGS)
        hello = life.report(Hello)
        hello_s = time.monotonic()
        life.attach()
        life.until(lambda: _free_bytes(life) >= wanted_bytes * 0.99, "memory")
        memory_s = time.monotonic()
        life.load(self._folder, **({"tokens": "count"} if self._fake else {}))
        loaded = life.report(Loaded)
        return life, {
            "context_s": hello_s - begun_s,
            "memory_s": memory_s - hello_s,
            "load_s": time.monotonic() - memory_s,
            "golden": loaded.info["golden"],
            "free_bytes": hello.memory_free_bytes,
        }

    @property
    def _fake(self) -> bool:
        return self._device == "fake"

    def _followed(self, life: DeviceLife, kind: str) -> dict[str, Any]:
        """To its end, which it may not come to."""
        seen, last_s = 0, time.monotonic()

        def over() -> bool:
            nonlocal seen, last_s
            count = len(life.ids(1))
            if count > seen:
                seen, last_s = count, time.monotonic()
            return life.gone() or life.ended(1) or life.late()

        life.until(over, f"end by {kind}")
        detect_s = time.monotonic() - last_s
        if life.ended(1):
            return {"detect_s": 0.0, "code": None, "as_expected": kind in SURVIVED}
        killed_s = time.monotonic()
        if not life.gone():
            life.process.kill()
        life.until(life.gone, "process that ends")
        code = life.process.returncode
        fault = next((r for r in life.reports if isinstance(r, Fault)), None)
        known = fault is not None and fault.code in CODES.get(kind, ())
        return {
            "detect_s": detect_s,
            "gone_s": time.monotonic() - killed_s,
            "exit_code": code,
            "code": None if fault is None else fault.code,
            "as_expected": known or (kind in SIGNALS and -code == SIGNALS[kind]),
        }


def _free_bytes(life: DeviceLife) -> int:
    return life.page.read().gauges["memory_free_bytes"] or 0


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    parts = ("detect_s", "gone_s", "context_s", "load_s", "first_token_s", "pause_s")
    print(f"{'':16}{'code':>6}" + "".join(f"{part:>15}" for part in parts) + "  met")
    for kind, row in rows.items():
        figures = "".join(f"{row.get(part, 0.0):15.3f}" for part in parts)
        print(f"{kind:16}{row['code'] or '-':>6}{figures}  {row['met']}")


if __name__ == "__main__":
    sys.exit(main())
