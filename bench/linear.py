"""CPU time of linear kernels, and of whole steps with and without fused layers.

    python bench/linear.py [--folder .cache/models/smollm2] [--threads 1] [--rounds 5]

The first table is a pass of M rows through all linear layers of the embedded model's
shapes (random weights, no layer twice in a row, so that caches don't help), by kind.
The second is a step of the model in `--folder` (converted, with its 4-bit blocks):
forward over paged KV and greedy sampling for B sequences of about 60 tokens, and the
prefill of one prompt, with layers as transformers has them and with fused ones.

Kinds and variants take turns within a round, so that a busy host falls on all of them;
medians are printed and written to bench/results/linear.json. Times are the thread's CPU
time with one thread, wall time with more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

if not __package__:  # run as a file: the packages lie beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ipc.messages import Sampling  # noqa: E402
from neurond import converted, quant  # noqa: E402
from neurond.device import assembly, linear, loader  # noqa: E402
from neurond.device.backend import Resident, Work  # noqa: E402
from neurond.device.build import Build, Meter  # noqa: E402
from neurond.device.computing import Computing  # noqa: E402
from neurond.device.drawing import outcomes  # noqa: E402
from neurond.device.linear import LinearPlan  # noqa: E402
from neurond.device.packed import Shelf  # noqa: E402
from neurond.device.quant import plans  # noqa: E402
from neurond.device.sampler import Sampler  # noqa: E402
from neurond.device.sequence import Sequence  # noqa: E402
from neurond.device.trial import make_ready, sequence_of  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "linear.json"
CPU = torch.device("cpu")
LAYERS = 30
SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536))
HEAD = (49152, 576)
ROWS = (1, 4, 8, 16, 64, 256)
SLOW_ROWS = 16  # the 4-bit kernel without a dense one takes seconds above
BATCHES = (1, 4, 16)
PROMPT, LONG_PROMPT, STEPS = 38, 1024, 12
PAGE_TOKENS, PAGES = 64, 32


def main() -> int:
    options = _options()
    torch.set_num_threads(options.threads)
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    loader.quiet_transformers()
    with torch.inference_mode():
        kernels = measure_kernels(options.rounds, clock)
        steps = measure_steps(options.folder, options.rounds, clock)
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "layout": linear.layout(),
        "python": platform.python_version(),
        "threads": options.threads,
        "rounds": options.rounds,
        "kernels_ms": kernels,
        "steps": steps,
    }
    print_tables(report)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    kept = Path(__file__).parents[1] / ".cache" / "models" / "smollm2"
    parser.add_argument("--folder", type=Path, default=kept)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


# -- kernels


def measure_kernels(rounds: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Medians in ms of a pass through all layers, and of the head, per kind and M."""
    models = {kind: _layers(kind) for kind in ("plain", "none", "int8", "int4")}
    times: dict[tuple[str, int, str], list[float]] = {}
    for _ in range(rounds):
        for rows in ROWS:
            for kind, (body, head) in models.items():
                if rows > SLOW_ROWS and kind == "int4":
                    continue
                for part, layers in (("layers", body), ("head", [head])):
                    spent = _pass(layers, rows, clock)
                    times.setdefault((kind, rows, part), []).append(spent)
    return [
        {"kind": kind, "rows": rows, "part": part, "ms": _median_ms(found)}
        for (kind, rows, part), found in times.items()
    ]


def _layers(kind: str) -> tuple[list[nn.Module], nn.Module]:
    """All layers of a step, and the head."""
    body = [_layer(kind, shape) for _ in range(LAYERS) for shape in SHAPES]
    return body, _layer("int8" if kind == "int4" else kind, HEAD)


def _layer(kind: str, shape: tuple[int, int]) -> nn.Module:
    weight = torch.randn(shape).to(torch.bfloat16)
    if kind == "plain":
        layer = nn.Linear(shape[1], shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return layer
    plan = LinearPlan(kind, keep_dense=False, group_size=32)
    return linear.pack(weight, None, plan)


def _pass(layers: list[nn.Module], rows: int, clock: Callable[[], float]) -> float:
    inputs = {n: torch.randn(rows, n).to(torch.bfloat16) for n in (576, 1536)}
    begin = clock()
    for layer in layers:
        layer(inputs[_width(layer)])
    return clock() - begin


def _width(layer: nn.Module) -> int:
    width: Any = layer.in_features
    return int(width)


# -- steps


def measure_steps(
    folder: Path, rounds: int, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """Medians in ms of a decode step per batch size, and of one long prefill."""
    models = {name: Model(folder, fuses=name == "fused") for name in ("apart", "fused")}
    times: dict[tuple[str, str], list[float]] = {}
    for batch in BATCHES:
        running = {name: model.start(batch) for name, model in models.items()}
        for _ in range(rounds):
            for name, model in models.items():
                spent = [model.step(running[name], clock) for _ in range(STEPS)]
                times.setdefault((name, f"B={batch}"), []).extend(spent)
    for _ in range(rounds):
        for name, model in models.items():
            spent_s = model.prefill(LONG_PROMPT, clock)
            times.setdefault((name, "prefill"), []).append(spent_s)
    tokens = {"prefill": LONG_PROMPT, **{f"B={n}": n for n in BATCHES}}
    return [
        {
            "layers": name,
            "what": what,
            "ms": _median_ms(found),
            "tokens_per_s": round(tokens[what] / statistics.median(found), 1),
        }
        for (name, what), found in times.items()
    ]


class Model:
    """The folder's model as a device would serve it, `fuses` apart."""

    def __init__(self, folder: Path, *, fuses: bool) -> None:
        module = _drain(_build(folder, fuses))
        body = loader.Body(module, CPU, last_only=True)
        size = int(module.get_input_embeddings().weight.shape[0])
        self._resident = Resident("bench", 8192, size, frozenset(), 0, {}, body)
        page_bytes = 1 << 21
        kv_bytes = max(BATCHES) * PAGES * page_bytes
        self._computing: Computing = _drain(
            make_ready(self._resident, PAGE_TOKENS, kv_bytes, None)
        )
        self._sampler = Sampler(CPU)

    def start(self, batch: int) -> list[Sequence]:
        """Sequences that are prefilled, with their first token."""
        sequences = [self._sequence(at, PROMPT) for at in range(batch)]
        for sequence in sequences:
            self._forward([sequence])
        return sequences

    def step(self, sequences: list[Sequence], clock: Callable[[], float]) -> float:
        begin = clock()
        self._forward(sequences)
        return clock() - begin

    def prefill(self, length: int, clock: Callable[[], float]) -> float:
        sequence = self._sequence(0, length)
        begin = clock()
        while sequence.num_computed < length:
            self._forward([sequence])
        return clock() - begin

    def _forward(self, sequences: list[Sequence]) -> None:
        works = [Work(s, min(512, s.num_pending)) for s in sequences]
        logits = self._computing.compute(works)
        found = outcomes(works, logits, self._sampler)
        for work, row in zip(works, found, strict=True):
            work.sequence.num_computed += work.num_ids
            token = getattr(row, "token", None)
            if token is not None:
                work.sequence.ids.append(token)

    def _sequence(self, at: int, length: int) -> Sequence:
        source = torch.Generator().manual_seed(at)
        ids = torch.randint(1000, 40_000, (length,), generator=source).tolist()
        pages = list(range(at * PAGES, (at + 1) * PAGES))
        sequence = sequence_of(self._resident, pages, tuple(ids))
        greedy = Sampling(temperature=0.0)
        sequence.submit = replace(sequence.submit, sampling=greedy)
        return sequence


def _build(folder: Path, fuses: bool) -> Generator[Any, None, Any]:
    config = assembly.read_config(folder)
    kind = assembly.kind_of(config, folder)
    place = quant.Place(True, "bfloat16", is_fast=True)
    form = quant.choose("", {}, converted.read(folder), place)
    plan = replace(plans(form, torch.bfloat16, CPU, fast=True), fuses=fuses)
    work = Build(folder, kind, plan, torch.bfloat16, CPU, Meter("bench"))
    with torch.inference_mode(False):
        return (yield from work.run(Shelf(None, "")))


def _drain(steps: Generator[Any, None, Any]) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


# -- words


def _median_ms(found: list[float]) -> float:
    return round(statistics.median(found) * 1e3, 2)


def print_tables(report: dict[str, Any]) -> None:
    print(f"{report['machine']}, {report['layout']}, {report['threads']} threads")
    table: dict[tuple[str, str], dict[int, float]] = {}
    for row in report["kernels_ms"]:
        table.setdefault((row["kind"], row["part"]), {})[row["rows"]] = row["ms"]
    print("linear layers, ms  " + "".join(f"{f'M={rows}':>9}" for rows in ROWS))
    for (kind, part), cells in table.items():
        line = "".join(f"{cells.get(rows, float('nan')):>9.1f}" for rows in ROWS)
        print(f"{kind:<8} {part:<9} {line}")
    print("steps              ms   tokens/s")
    for row in report["steps"]:
        told = f"{row['what']:<8} {row['layers']:<6} {row['ms']:>7.1f}"
        print(f"{told} {row['tokens_per_s']:>9.1f}")


if __name__ == "__main__":
    sys.exit(main())
