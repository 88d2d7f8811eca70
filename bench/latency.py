"""What running streams feel of a long prompt, and of a model that loads beside them.

    python -m bench.latency [--rounds 5]

Four streams decode on a device pinned to core 0 with one thread; everything else is on
core 1. Per round: the gaps between their pieces when nothing else happens, while a
prompt of about 7,500 tokens is prefilled, and while a second copy of the model loads on
the same device; and how long that prompt waits for its first token, alone and beside
the streams. Through the gateway. Medians go to bench/results/latency.json.

Goals: the 99th percentile of gaps at most 3 times the quiet median in both cases, the
prompt's first token at most twice its time alone. Ends with 1 when one is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from bench import servers
from bench.servers import Server
from bench.streams import Messages, Timeline, chat

RESULTS = Path(__file__).parent / "results" / "latency.json"
NUM_STREAMS = 4
NUM_TOKENS = 1000
NUM_ITEMS = 1050  # of about seven tokens
GAP_GOAL, FIRST_GOAL = 3.0, 2.0
OTHER = "second-copy"
_QUIET_S = 4.0
_LOAD_TIMEOUT_S = 120.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with servers.cortex("0,1") as server:
        pin(server)
        rows = [asyncio.run(_round(server, n)) for n in range(options.rounds + 1)][1:]
    report = summarise(rows)
    print_table(report)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(goal["met"] for goal in report["goals"]) else 1


def pin(server: Server) -> None:
    """The device on core 0, all else, this process too, on core 1."""
    root = psutil.Process(server.process.pid)
    for process in [root, *root.children(recursive=True)]:
        is_device = "device" in " ".join(process.cmdline())
        for thread in process.threads():
            os.sched_setaffinity(thread.id, {0} if is_device else {1})
    os.sched_setaffinity(0, {1})


async def _round(server: Server, number: int) -> dict[str, float]:
    alone = await _ask_long(server, f"alone {number}")
    streams = [asyncio.create_task(_stream(server, number, i)) for i in range(4)]
    quiet = await _span(_QUIET_S)
    begun_s = time.perf_counter()
    beside = await _ask_long(server, f"beside {number}")
    during = (begun_s, begun_s + beside.first_s)
    load = await _load(server)
    pieces = [task.piece_s for task in await asyncio.gather(*streams)]
    await asyncio.to_thread(_order, server, "unload", {"model_id": OTHER})
    row = {
        "gap_s": statistics.median(_gaps(pieces, quiet)),
        "prefill_gap_p99_s": _p99(_gaps(pieces, during)),
        "load_gap_p99_s": _p99(_gaps(pieces, load)),
        "first_alone_s": alone.first_s,
        "first_beside_s": beside.first_s,
        "load_s": load[1] - load[0],
    }
    print(number, {name: round(value, 4) for name, value in row.items()})
    return row


async def _stream(server: Server, number: int, index: int) -> Timeline:
    text = f"Round {number}: write a long story about lighthouse number {index}."
    return await chat(
        server.url,
        server.model,
        [{"role": "user", "content": text}],
        max_tokens=NUM_TOKENS,
        ignore_eos=True,
    )


async def _span(seconds: float) -> tuple[float, float]:
    """An interval in which we do nothing; its first half second is left out."""
    begun_s = time.perf_counter() + 0.5
    await asyncio.sleep(seconds)
    return begun_s, time.perf_counter()


async def _ask_long(server: Server, name: str) -> Timeline:
    words = " ".join(f"{name} {i}" for i in range(NUM_ITEMS))
    messages: Messages = [{"role": "user", "content": f"{words}\nSummarise it."}]
    return await chat(server.url, server.model, messages, max_tokens=2)


async def _load(server: Server) -> tuple[float, float]:
    begun_s = time.perf_counter()
    source = str(servers.converted_model())
    order = {"model_id": OTHER, "source": source}
    await asyncio.to_thread(_order, server, "load", order)
    return begun_s, time.perf_counter()


def _order(server: Server, verb: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(
        f"{server.node_url}/models/{verb}",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=_LOAD_TIMEOUT_S).close()


def _gaps(pieces: list[list[float]], span: tuple[float, float]) -> list[float]:
    """Of all streams, between pieces of which the later one came within the span."""
    return [
        later - earlier
        for times in pieces
        for earlier, later in zip(times, times[1:], strict=False)
        if span[0] <= later <= span[1]
    ]


def _p99(gaps: list[float]) -> float:
    return sorted(gaps)[min(len(gaps) - 1, int(len(gaps) * 0.99))]


def summarise(rows: list[dict[str, float]]) -> dict[str, Any]:
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    ratios = {
        "gaps while a prompt prefills": ("prefill_gap_p99_s", "gap_s", GAP_GOAL),
        "gaps while a model loads": ("load_gap_p99_s", "gap_s", GAP_GOAL),
        "first token": ("first_beside_s", "first_alone_s", FIRST_GOAL),
    }
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "rounds": len(rows),
        "medians": medians,
        "goals": [
            _verdict(name, statistics.median(r[a] / r[b] for r in rows), most)
            for name, (a, b, most) in ratios.items()
        ],
    }


def _verdict(name: str, ratio: float, most: float) -> dict[str, Any]:
    ratio = round(ratio, 2)
    return {"measure": name, "ratio": ratio, "goal": most, "met": ratio <= most}


def print_table(report: dict[str, Any]) -> None:
    print(f"{report['machine']}, Python {report['python']}, {report['rounds']} rounds")
    for name, value in report["medians"].items():
        print(f"{name:<20} {value * 1e3:>9.1f} ms")
    for goal in report["goals"]:
        verdict = "met" if goal["met"] else "missed"
        print(f"{goal['measure']}: {goal['ratio']}x, goal {goal['goal']}x: {verdict}")


if __name__ == "__main__":
    sys.exit(main())
