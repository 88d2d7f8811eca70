"""Tables of bench/RESULTS.md, made from what the programs of bench/ wrote.

What was not measured yet has a line that says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "bench" / "results"


def ring(report: Any) -> Iterator[str]:
    yield (
        "| transport | size | CPU per message | ratio | producer | consumer"
        " | one-way p50 | p99 |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for row in report["rows"]:
        yield (
            f"| {row['transport']} | {row['size_bytes']} B | {row['cpu_us']:.2f} µs"
            f" | {row['cpu_ratio']:.2f} × | {row['producer_us']:.2f} µs"
            f" | {row['consumer_us']:.2f} µs | {row['latency_p50_us']:.0f} µs"
            f" | {row['latency_p99_us']:.0f} µs |"
        )


def startup(report: Any) -> Iterator[str]:
    yield "| way | pid known | ready, median | least | most |"
    yield "|---|---|---|---|---|"
    for row in report["rows"]:
        cells = [
            f"{row[f'{name}_ms']:.1f} ms"
            for name in ("forked", "ready", "least", "most")
        ]
        yield f"| {row['way']} | {' | '.join(cells)} |"
    yield ""
    yield f"exec takes {report['ratio']:.1f} × as long."


def serve(report: Any) -> Iterator[str]:
    yield "| server | 1 stream | 16 streams | first token, long prompt | second turn |"
    yield "|---|---|---|---|---|"
    for row in report["rows"]:
        yield (
            f"| {row['server']} | {row['one']:.1f} tokens/s"
            f" | {row['sixteen']:.1f} tokens/s | {row['long']:.2f} s"
            f" | {row['second']:.2f} s |"
        )
    yield ""
    yield "| ratio | against | measured | goal | |"
    yield "|---|---|---|---|---|"
    for goal in report["goals"]:
        name = _SERVED.get(goal["measure"], goal["measure"])
        bound = "at most" if goal["peer"] == "itself" else "at least"
        yield (
            f"| {name} | {goal['peer']} | {goal['ratio']:g} ×"
            f" | {bound} {goal['goal']:g} × | {_verdict(goal)} |"
        )


_SERVED = {
    "one": "tokens/s of 1 stream",
    "sixteen": "tokens/s of 16 streams",
    "long": "speed of the first token",
    "second/long": "first token of the second turn / of the first",
}


def latency(report: Any) -> Iterator[str]:
    yield "| | median |"
    yield "|---|---|"
    for name, words in _LATENCIES.items():
        yield f"| {words} | {report['medians'][name] * 1e3:.0f} ms |"
    yield ""
    yield "| ratio | measured | goal | |"
    yield "|---|---|---|---|"
    for goal in report["goals"]:
        told = f"{goal['ratio']:g} × | at most {goal['goal']:g} × | {_verdict(goal)}"
        yield f"| {goal['measure']} | {told} |"


_LATENCIES = {
    "gap_s": "between tokens of a stream, nothing else happening",
    "prefill_gap_p99_s": "99th percentile while a long prompt is prefilled",
    "load_gap_p99_s": "99th percentile while a second model loads",
    "first_alone_s": "first token of the long prompt, alone",
    "first_beside_s": "first token of the long prompt, beside the streams",
    "load_s": "the load, beside the streams",
}


def overhead(report: Any) -> Iterator[str]:
    yield "| | tokens/s |"
    yield "|---|---|"
    yield f"| engine alone | {report['engine_tokens_s']:.1f} |"
    yield f"| through the gateway | {report['gateway_tokens_s']:.1f} |"
    yield ""
    yield (
        f"{report['streams']} streams of {report['tokens']} tokens, {report['model']}."
        f" Ratio {report['ratio']:g} × (in one round {report['least_ratio']:g}),"
        f" goal at least {report['goal']:g} ×: {_verdict(report)}."
    )


def linear(report: Any) -> Iterator[str]:
    cells = {
        (row["kind"], row["rows"]): row["ms"]
        for row in report["kernels_ms"]
        if row["part"] == "layers"
    }
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    yield f"Kernels for {report['layout']}, {report['threads']} thread."
    yield ""
    yield f"| rows | {' | '.join(kinds)} |"
    yield "|---" * (len(kinds) + 1) + "|"
    for rows in dict.fromkeys(rows for _, rows in cells):
        found = [cells.get((kind, rows)) for kind in kinds]
        told = ["" if ms is None else f"{ms:.1f} ms" for ms in found]
        yield f"| {rows} | {' | '.join(told)} |"
    yield ""
    yield "| step | layers apart | fused | gain |"
    yield "|---|---|---|---|"
    steps = {(row["what"], row["layers"]): row["ms"] for row in report["steps"]}
    for what in dict.fromkeys(what for what, _ in steps):
        apart, fused = steps[what, "apart"], steps[what, "fused"]
        gain = f"{apart / fused:.2f} ×"
        yield f"| {what} | {apart:.1f} ms | {fused:.1f} ms | {gain} |"


def gpu_engine(report: Any) -> Iterator[str]:
    yield f"{report['device']}, torch {report['torch']}, shape {report['shape']}."
    yield ""
    yield "| | |"
    yield "|---|---|"
    for name, (words, scale, unit) in _GPU.items():
        if report.get(name) is not None:
            yield f"| {words} | {report[name] * scale:,.2f} {unit} |"
    yield f"| `numerics = invariant` | {report['invariant']} |"
    yield ""
    yield (
        f"One stream runs at {report['floor_share']:.0%} of the floor, goal"
        f" at least {report['goal']:.0%}: {_verdict(report)}."
    )


_GPU = {
    "read_bytes_s": ("bandwidth, read", 1e-9, "GB/s"),
    "copy_bytes_s": ("bandwidth, copied", 1e-9, "GB/s"),
    "floor_s": ("floor of a step", 1e3, "ms"),
    "step_1_s": ("step of 1 stream", 1e3, "ms"),
    "step_1_uncaptured_s": ("the same, not captured", 1e3, "ms"),
    "step_16_s": ("step of 16 streams", 1e3, "ms"),
    "step_64_s": ("step of 64 streams", 1e3, "ms"),
    "prefill_tokens_s": ("prefill", 1.0, "tokens/s"),
    "quiet_gap_s": ("4 streams: gap", 1e3, "ms"),
    "prefill_gap_s": ("longest gap during a prefill", 1e3, "ms"),
    "load_gap_s": ("longest gap during a load", 1e3, "ms"),
    "load_beside_s": ("that load", 1.0, "s"),
    "invariant_step_1_s": ("invariant: step of 1 stream", 1e3, "ms"),
    "invariant_step_16_s": ("invariant: step of 16 streams", 1e3, "ms"),
}


def _verdict(goal: Any) -> str:
    return "met" if goal["met"] else "missed"


def _machine(report: Any) -> str:
    kernel = re.match(r"\d+\.\d+", report.get("kernel", ""))
    system = f" Linux {kernel[0]}," if kernel else ""
    return (
        f"{report['machine']} (virtual),{system} Python {report['python']};"
        f" medians of {report['rounds']} rounds."
    )


def _made(name: str, table: Callable[[Any], Iterator[str]]) -> Iterator[str]:
    file = RESULTS / f"{name}.json"
    if not file.exists():
        yield "Not measured yet."
        return
    report = json.loads(file.read_text())
    if "machine" in report:
        yield _machine(report)
        yield ""
    yield from table(report)


_TABLES = (ring, startup, serve, latency, overhead, linear, gpu_engine)
MADE = [(table.__name__, partial(_made, table.__name__, table)) for table in _TABLES]
"""Parts by name."""
