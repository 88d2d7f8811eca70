"""The engine on a GPU, against what the memory's bandwidth allows.

    python -m bench.gpu_engine [--shape 8b] [--rounds 3]
    python -m bench.gpu_engine --shape tiny --device cpu     as a test of itself

A Llama of the shape with random weights in bfloat16, loaded from a file and run by the
engine itself, in this process, without network. Needs no model and no other package
than a device needs. Measured:

    floor      bytes that a step has to read / bandwidth (the better of reading and
               copying 2 GiB)
    decode     a step of 1 stream, captured as a CUDA graph and not; of 16 and 64
    prefill    tokens per second of a long prompt
    stalls     the longest gap of 4 streams while a long prompt is prefilled, and while
               a second model loads on the device
    numerics   whether the self-test proves `invariant` here, and what a step then costs

Goal: a captured step of one stream at 85 % of the floor or better. On CUDA the figures
go to bench/results/gpu_engine.json. Ends with 0 where there is no device to measure.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import checkpoint
from bench.inprocess import EngineFailed, Ids, InProcess, Run
from bench.shapes import SHAPES, Shape

RESULTS = Path(__file__).parent / "results" / "gpu_engine.json"
GOAL = 0.85
_SKIPPED = 4


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    if options.device is None and not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured (--device cpu is for a test)")
        return 0
    kind = options.device or "cuda"
    with tempfile.TemporaryDirectory(prefix="cortex-bench-") as folder:
        bench = Bench(SHAPES[options.shape], kind, options.rounds, Path(folder))
        report = describe(options.shape, kind) | bench.measure()
    print_table(report)
    out = options.out or (RESULTS if kind == "cuda" else None)
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if report["met"] or kind == "cpu" else 1


def describe(shape: str, kind: str) -> dict[str, Any]:
    cuda = kind == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "shape": shape,
    }


class Bench:
    """One engine, one model "m", others beside it for a while."""

    def __init__(self, shape: Shape, kind: str, rounds: int, folder: Path) -> None:
        self._shape, self._kind, self._rounds = shape, kind, rounds
        self._folder = folder / "model"
        self._prompts = 0
        checkpoint.write(self._folder, shape.config(), torch.bfloat16)
        self._engine = InProcess(
            kind, threads=1, kv_bytes=shape.kv_bytes, max_running=64
        )

    def measure(self) -> dict[str, Any]:
        loaded = self._engine.load(self._folder, quant="none")
        bandwidth = bandwidths(self._kind, self._shape.buffer_bytes)
        step_bytes = self._step_bytes(loaded.info["bytes_per_token"])
        floor_s = step_bytes / max(bandwidth.values())
        steps = {f"step_{n}_s": self._step_s(n) for n in (1, 16, 64)}
        graphs = self._without_graphs(lambda: self._step_s(1))
        prefill = self._prefill()
        report = {
            "rounds": self._rounds,
            "load_s": loaded.seconds,
            "resident_bytes": loaded.resident_bytes,
            **bandwidth,
            "step_bytes": step_bytes,
            "floor_s": floor_s,
            **steps,
            "step_1_uncaptured_s": graphs,
            "floor_share": floor_s / steps["step_1_s"],
            "prefill_tokens_s": prefill,
            **self._stalls(),
            **self._invariant(),
        }
        return {**report, "goal": GOAL, "met": report["floor_share"] >= GOAL}

    # -- parts

    def _step_bytes(self, bytes_per_token: int) -> int:
        """Every weight but the table of embeddings, and the KV behind the row."""
        module = self._engine.engine.models["m"].body.module
        held = sum(p.numel() * p.element_size() for p in module.parameters())
        table = module.get_input_embeddings().weight
        past = self._shape.prompt + self._shape.tokens // 2
        return int(held - table.numel() * table.element_size() + past * bytes_per_token)

    def _step_s(self, num_streams: int, model: str = "m") -> float:
        """Of steps in which that many streams decode; the median of all rounds."""
        gaps = []
        for _ in range(self._rounds + 1):
            prompts = [self._prompt(self._shape.prompt) for _ in range(num_streams)]
            run = self._engine.run(prompts, self._shape.tokens, model)
            gaps.append(_full_steps(run, num_streams))
        return statistics.median(gap for part in gaps[1:] for gap in part)

    def _without_graphs(self, measure: Callable[[], float]) -> float | None:
        """None where nothing was captured."""
        # no setting turns them off: who serves has no use for one
        paged = self._engine.backend._models["m"]
        graphs = getattr(paged, "graphs", None)
        if graphs is None:
            return None
        paged.graphs = None  # type: ignore[union-attr]
        try:
            return measure()
        finally:
            paged.graphs = graphs  # type: ignore[union-attr]

    def _prefill(self) -> float:
        """Tokens per second of a prompt that comes alone."""
        seconds = []
        for _ in range(self._rounds + 1):
            seconds.append(self._engine.run([self._long()], 1).seconds)
        return self._shape.long_prompt / statistics.median(seconds[1:])

    def _stalls(self) -> dict[str, float]:
        quiet, prefill, load = [], [], []
        for _ in range(self._rounds):
            run = self._streams()
            quiet += _gaps(self._steps(run, 16))
            prefill.append(max(_gaps(self._beside_prompt(run))))
            times, load_s = self._beside_load(run)
            load.append(max(_gaps(times)))
            self._engine.engine.drop_model("second")
            self._end()
        return {
            "quiet_gap_s": statistics.median(quiet),
            "prefill_gap_s": statistics.median(prefill),
            "load_gap_s": statistics.median(load),
            "load_beside_s": load_s,
        }

    def _streams(self) -> Run:
        """Four that go on and on, past their first tokens."""
        run = Run(time.perf_counter())
        room = self._shape.context - self._shape.prompt - 1
        for _ in range(4):
            self._engine.submit(self._prompt(self._shape.prompt), room)
        self._steps(run, _SKIPPED + 4)
        return run

    def _steps(self, run: Run, count: int) -> list[float]:
        return [self._step(run) for _ in range(count)]

    def _step(self, run: Run) -> float:
        """Every running stream has a token by then."""
        self._engine.step(run)
        return time.perf_counter()

    def _beside_prompt(self, run: Run) -> list[float]:
        begun_s = time.perf_counter()
        asked = self._engine.submit(self._long(), 2)
        while asked not in run.token_s:
            self._engine.step(run)
        return _of_streams(run, asked, begun_s)

    def _beside_load(self, run: Run) -> tuple[list[float], float]:
        """As the device's loop does it: a slice, a step."""
        begun_s = time.perf_counter()
        self._engine.begin_load(self._folder, "second", quant="none")
        while (loaded := self._engine.advance()) is None:
            self._engine.step(run)
        self._engine.step(run)
        return _of_streams(run, None, begun_s), loaded.seconds

    def _end(self) -> None:
        for sequence in list(self._engine.engine.roster):
            self._engine.cancel(sequence.id)

    def _invariant(self) -> dict[str, Any]:
        told = {"numerics": "invariant"}
        try:
            loaded = self._engine.load(self._folder, "same", quant="none", options=told)
        except EngineFailed as refused:
            return {"invariant": str(refused)}
        step_s = self._step_s(1, "same")
        crowd_s = self._step_s(16, "same")
        self._engine.engine.drop_model("same")
        return {
            "invariant": "proven",
            "invariant_load_s": loaded.seconds,
            "invariant_step_1_s": step_s,
            "invariant_step_16_s": crowd_s,
        }

    def _prompt(self, num_tokens: int) -> Ids:
        """Another one each time."""
        self._prompts += 1
        made = torch.Generator().manual_seed(self._prompts)
        ids = torch.randint(1, self._shape.vocab, (num_tokens,), generator=made)
        return tuple(ids.tolist())

    def _long(self) -> Ids:
        return self._prompt(self._shape.long_prompt)


def bandwidths(kind: str, size_bytes: int) -> dict[str, float]:
    """Bytes per second of reading, and of copying (read and written)."""
    source = torch.ones(size_bytes // 4, device=kind)
    target = torch.empty_like(source)
    read_s = _best_s(kind, lambda: source.sum())
    copy_s = _best_s(kind, lambda: target.copy_(source))
    return {
        "read_bytes_s": size_bytes / read_s,
        "copy_bytes_s": 2 * size_bytes / copy_s,
    }


def _best_s(kind: str, work: Callable[[], Any], tries: int = 12) -> float:
    times = []
    for _ in range(tries):
        begun_s = time.perf_counter()
        work()
        if kind == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun_s)
    return min(times)


def _of_streams(run: Run, other: int | None, begun_s: float) -> list[float]:
    """When the streams had tokens, the last before it began included."""
    times = next(times for name, times in run.token_s.items() if name != other)
    before = [t for t in times if t < begun_s][-1:]
    return before + [t for t in times if t >= begun_s]


def _full_steps(run: Run, num_rows: int) -> list[float]:
    """Seconds of the steps, behind one like them, that all the requests were in."""
    pairs = zip(run.steps, run.steps[1:], strict=False)
    return [b - a for (a, m), (b, n) in pairs if m == n == num_rows][_SKIPPED:]


def _gaps(times: list[float]) -> list[float]:
    return [b - a for a, b in zip(times, times[1:], strict=False)]


def print_table(report: dict[str, Any]) -> None:
    print(f"{report['device']}, torch {report['torch']}, shape {report['shape']}")
    for name, value in report.items():
        if name.endswith("bytes_s"):
            print(f"{name[:-2]:<22} {value / 1e9:>10.1f} GB/s")
        elif name.endswith("tokens_s"):
            print(f"{name[:-2]:<22} {value:>10.0f} /s")
        elif name.endswith("_s") and value is not None:
            print(f"{name[:-2]:<22} {value * 1e3:>10.2f} ms")
    print(f"invariant: {report['invariant']}")
    verdict = "met" if report["met"] else "missed"
    share = report["floor_share"]
    print(f"one stream at {share:.1%} of the floor, goal {GOAL:.0%}: {verdict}")


if __name__ == "__main__":
    sys.exit(main())
