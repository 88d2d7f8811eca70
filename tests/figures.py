"""Tables of bench/RESULTS.md, made from what the programs of bench/ wrote.

What was not measured yet has a line that says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "bench" / "results"


def ring(report: Any) -> Iterator[str]:
    heads = ("transport", "size", "CPU per message", "ratio", "producer", "consumer")
    yield from _table(
        (*heads, "one-way p50", "p99"),
        (
            (
                row["transport"],
                f"{row['size_bytes']} B",
                f"{row['cpu_us']:.2f} µs",
                f"{row['cpu_ratio']:.2f} ×",
                f"{row['producer_us']:.2f} µs",
                f"{row['consumer_us']:.2f} µs",
                f"{row['latency_p50_us']:.0f} µs",
                f"{row['latency_p99_us']:.0f} µs",
            )
            for row in report["rows"]
        ),
    )


def startup(report: Any) -> Iterator[str]:
    times = ("forked_ms", "ready_ms", "least_ms", "most_ms")
    yield from _table(
        ("way", "pid known", "ready, median", "least", "most"),
        (
            (row["way"], *(f"{row[name]:.1f} ms" for name in times))
            for row in report["rows"]
        ),
    )
    yield ""
    yield f"exec takes {report['ratio']:.1f} × as long."


def serve(report: Any) -> Iterator[str]:
    yield from _table(
        ("server", "1 stream", "16 streams", "first token, long prompt", "second turn"),
        (
            (
                row["server"],
                f"{row['one']:.1f} tokens/s",
                f"{row['sixteen']:.1f} tokens/s",
                f"{row['long']:.2f} s",
                f"{row['second']:.2f} s",
            )
            for row in report["rows"]
        ),
    )
    yield ""
    yield from _table(
        ("ratio", "against", "measured", "goal", ""),
        (
            (
                _SERVED.get(goal["measure"], goal["measure"]),
                goal["peer"],
                *_reached(goal, "at most" if goal["peer"] == "itself" else "at least"),
            )
            for goal in report["goals"]
        ),
    )


_SERVED = {
    "one": "tokens/s of 1 stream",
    "sixteen": "tokens/s of 16 streams",
    "long": "speed of the first token",
    "second/long": "first token of the second turn / of the first",
}


def latency(report: Any) -> Iterator[str]:
    medians = report["medians"]
    yield from _table(
        ("", "median"),
        (
            (words, f"{medians[name] * 1e3:.0f} ms")
            for name, words in _LATENCIES.items()
        ),
    )
    yield ""
    yield from _table(
        ("ratio", "measured", "goal", ""),
        ((goal["measure"], *_reached(goal, "at most")) for goal in report["goals"]),
    )


_LATENCIES = {
    "gap_s": "between tokens of a stream, nothing else happening",
    "prefill_gap_p99_s": "99th percentile while a long prompt is prefilled",
    "load_gap_p99_s": "99th percentile while a second model loads",
    "first_alone_s": "first token of the long prompt, alone",
    "first_beside_s": "first token of the long prompt, beside the streams",
    "load_s": "the load, beside the streams",
}


def overhead(report: Any) -> Iterator[str]:
    yield from _table(
        ("", "tokens/s"),
        (
            ("engine alone", f"{report['engine_tokens_s']:.1f}"),
            ("through the gateway", f"{report['gateway_tokens_s']:.1f}"),
        ),
    )
    yield ""
    yield (
        f"{report['streams']} streams of {report['tokens']} tokens, {report['model']}."
        f" Ratio {report['ratio']:g} × (in one round {report['least_ratio']:g}),"
        f" goal at least {report['goal']:g} ×: {_verdict(report)}."
    )


def recovery(report: Any) -> Iterator[str]:
    yield from _table(
        ("numerics", *_PARTS.values()),
        (
            (row["numerics"], *(f"{row[name] * 1e3:.0f} ms" for name in _PARTS))
            for row in report["rows"]
        ),
    )
    yield ""
    yield (
        f"Threads of a device: {report['threads']}. Median pause with `fast`, goal"
        f" at most {report['goal_s']:g} s: {_verdict(report)}."
    )


_PARTS = {
    "pause_s": "pause, median",
    "least_s": "least",
    "most_s": "most",
    "detect_s": "detect",
    "memory_s": "memory",
    "respawn_s": "respawn",
    "load_s": "load",
    "first_token_s": "first token",
}


def linear(report: Any) -> Iterator[str]:
    cells = {
        (row["kind"], row["rows"]): f"{row['ms']:.1f} ms"
        for row in report["kernels_ms"]
        if row["part"] == "layers"
    }
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    yield f"Kernels for {report['layout']}, {report['threads']} thread."
    yield ""
    yield from _table(
        ("rows", *kinds),
        (
            (str(rows), *(cells.get((kind, rows), "") for kind in kinds))
            for rows in dict.fromkeys(rows for _, rows in cells)
        ),
    )
    yield ""
    steps = {(row["what"], row["layers"]): row["ms"] for row in report["steps"]}
    yield from _table(
        ("step", "layers apart", "fused", "gain"),
        (
            _fused(what, steps[what, "apart"], steps[what, "fused"])
            for what in dict.fromkeys(what for what, _ in steps)
        ),
    )


def _fused(what: str, apart_ms: float, fused_ms: float) -> tuple[str, ...]:
    gain = f"{apart_ms / fused_ms:.2f} ×"
    return what, f"{apart_ms:.1f} ms", f"{fused_ms:.1f} ms", gain


def gpu_engine(report: Any) -> Iterator[str]:
    yield f"{report['device']}, torch {report['torch']}, shape {report['shape']}."
    yield ""
    figures = [
        (words, f"{report[name] * scale:,.2f} {unit}")
        for name, (words, scale, unit) in _GPU.items()
        if report.get(name) is not None
    ]
    yield from _table(
        ("", ""), (*figures, ("`numerics = invariant`", report["invariant"]))
    )
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


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield _row(heads)
    yield "|---" * len(heads) + "|"
    yield from map(_row, rows)


def _row(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def _reached(goal: Any, bound: str) -> tuple[str, str, str]:
    return f"{goal['ratio']:g} ×", f"{bound} {goal['goal']:g} ×", _verdict(goal)


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


_TABLES = (
    *(ring, startup, recovery, serve),
    *(latency, overhead, linear, gpu_engine),
)
MADE = [(table.__name__, partial(_made, table.__name__, table)) for table in _TABLES]
"""Parts by name."""
