"""The tables of figures understand what the programs write."""

from __future__ import annotations

from typing import Any

from bench import latency, overhead, recovery, serve
from tests import figures


def text(lines: Any) -> str:
    return "\n".join(lines)


def test_servers_are_compared_by_rate_and_by_time() -> None:
    ours = {"one": [60.0], "sixteen": [300.0], "long": [1.0], "second": [0.1]}
    theirs = {"one": [20.0], "sixteen": [250.0], "long": [2.0], "second": [2.0]}
    report = serve.summarise({"cortex": ours, "transformers": theirs})
    made = text(figures.serve(report))
    assert "| cortex | 60.0 tokens/s | 300.0 tokens/s | 1.00 s | 0.10 s |" in made
    assert "16 streams | transformers | 1.2 × | at least 1.5 × | missed |" in made
    assert "first token | transformers | 2 × | at least 1 × | met |" in made
    assert "/ of the first | itself | 0.1 × | at most 0.15 × | met |" in made


def test_gaps_are_told_with_their_goals() -> None:
    row = {"gap_s": 0.02, "prefill_gap_p99_s": 0.05, "load_gap_p99_s": 0.09}
    more = {"first_alone_s": 4.0, "first_beside_s": 6.0, "load_s": 1.0}
    made = text(figures.latency(latency.summarise([row | more])))
    assert "| between tokens of a stream, nothing else happening | 20 ms |" in made
    assert "| gaps while a prompt prefills | 2.5 × | at most 3 × | met |" in made
    assert "| gaps while a model loads | 4.5 × | at most 3 × | missed |" in made


def test_overhead_is_one_ratio() -> None:
    rows = [{"engine": 300.0, "gateway": 285.0, "ratio": 0.95}] * 5
    info = {"architecture": "LlamaForCausalLM", "quant": "int4"}
    report = overhead.summarise(rows, info)
    assert report["met"]
    assert "Ratio 0.95 ×" in text(figures.overhead(report))


def test_a_pause_is_told_with_its_parts() -> None:
    row = {"pause_s": 0.9, **dict.fromkeys(recovery.PARTS, 0.1)}
    slow = {**row, "pause_s": 1.7}
    samples = {"fast": [row, row, slow], "invariant": [slow]}
    made = text(figures.recovery(recovery.summarise(samples, threads=1)))
    assert "| fast | 900 ms | 900 ms | 1700 ms | 100 ms |" in made
    assert "goal at most 1.5 s: met" in made
    late = recovery.summarise({"fast": [slow], "invariant": [row]}, threads=1)
    assert "goal at most 1.5 s: missed" in text(figures.recovery(late))


def test_what_was_never_measured_says_so() -> None:
    assert text(figures._made("nothing", figures.ring)) == "Not measured yet."
