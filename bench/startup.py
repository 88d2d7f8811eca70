"""Respawn to ready of a device process: forked by the zygote beside started by exec.

    python bench/startup.py [--rounds 15]

A real torch device on the CPU, without a model: from the order to its Hello, which it
says when torch is imported, its threads are set and its context stands. This is the
supervisor's own code (`neurond.forker`) both ways. Rounds take turns, so that a busy
host falls on both; both ways are warmed up, so that files come from the page cache.
Medians are printed and written to bench/results/startup.json.

Ends with 1 when exec takes less than 20 times as long.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

if not __package__:  # run as a file: the packages lie beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ipc.child import Child, Exit, Reaper, become_subreaper  # noqa: E402
from ipc.journal import Journal  # noqa: E402
from ipc.link import Link, create_link  # noqa: E402
from ipc.messages import Hello, Stop  # noqa: E402
from ipc.status import create_page  # noqa: E402
from neurond.forker import Forker  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "startup.json"
GOAL = 20.0
DEADLINE_S = 60.0
WAYS = ("zygote", "exec")
_SETTINGS = {"kind": "cpu", "generation": 1, "count": 1, "threads": 0}


@dataclass(frozen=True, slots=True)
class Sample:
    """`forked_s`: until the pid is known; `ready_s`: until the device's Hello."""

    forked_s: float
    ready_s: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    report = summarise(uvloop.run(measure(options.rounds)))
    print_table(report)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if report["ratio"] >= GOAL else 1


async def measure(rounds: int) -> dict[str, list[Sample]]:
    become_subreaper()  # a forked device is to become our child
    reaper = Reaper(asyncio.get_running_loop())
    forkers = {way: _forker(reaper, way) for way in WAYS}
    for forker in forkers.values():
        forker.start()
        await start_one(forker, reaper)  # the zygote imports; files are cached
    samples: dict[str, list[Sample]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, forker in forkers.items():
            samples[way].append(await start_one(forker, reaper))
    for forker in forkers.values():
        await forker.stop()
    reaper.close()
    return samples


def _forker(reaper: Reaper, way: str) -> Forker:
    return Forker(
        reaper,
        Journal("bench"),
        preload="torch",
        use_zygote=way == "zygote",
        on_died=lambda end: None,
    )


async def start_one(forker: Forker, reaper: Reaper) -> Sample:
    """One device: order it, hear its Hello, let it end."""
    ours, theirs = create_link()
    page_fd = create_page()
    begun_s = time.perf_counter()
    order = ("device", "cpu-0", _SETTINGS)
    child = await forker.fork(order, (theirs.fileno(), page_fd), DEADLINE_S)
    forked_s = time.perf_counter() - begun_s
    gone = _watch(reaper, child)
    theirs.close()
    await asyncio.wait_for(_hello(ours), DEADLINE_S)
    ready_s = time.perf_counter() - begun_s
    ours.send(Stop())
    await asyncio.wait_for(gone, DEADLINE_S)
    ours.close()
    os.close(page_fd)
    return Sample(forked_s, ready_s)


def _watch(reaper: Reaper, child: Child) -> asyncio.Future[Exit]:
    gone: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    reaper.watch(child, lambda _child, end: gone.set_result(end))
    return gone


async def _hello(link: Link) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(link.fileno(), readable.set)
    try:
        while True:
            await readable.wait()
            readable.clear()
            received = link.receive()
            if received is not None and isinstance(received[0], Hello):
                return
    finally:
        loop.remove_reader(link.fileno())


def summarise(samples: dict[str, list[Sample]]) -> dict[str, Any]:
    """Medians; `ratio` is how many times as long exec takes to be ready."""
    rows = [_row(way, samples[way]) for way in WAYS]
    ready_ms = {row["way"]: row["ready_ms"] for row in rows}
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "rounds": len(samples["exec"]),
        "rows": rows,
        "ratio": round(ready_ms["exec"] / ready_ms["zygote"], 1),
    }


def _row(way: str, samples: list[Sample]) -> dict[str, Any]:
    ready_ms = sorted(sample.ready_s * 1e3 for sample in samples)
    return {
        "way": way,
        "forked_ms": round(statistics.median(s.forked_s for s in samples) * 1e3, 2),
        "ready_ms": round(statistics.median(ready_ms), 2),
        "least_ms": round(ready_ms[0], 2),
        "most_ms": round(ready_ms[-1], 2),
    }


def print_table(report: dict[str, Any]) -> None:
    print(f"{report['machine']}, Python {report['python']}, {report['rounds']} rounds")
    print("way       pid ms   ready ms      least       most")
    for row in report["rows"]:
        print(
            f"{row['way']:<7} {row['forked_ms']:>8.2f} {row['ready_ms']:>10.2f}"
            f" {row['least_ms']:>10.2f} {row['most_ms']:>10.2f}"
        )
    ratio = report["ratio"]
    verdict = "met" if ratio >= GOAL else "missed"
    print(f"exec takes {ratio:.0f}x the zygote's time; goal {GOAL:.0f}x: {verdict}")


if __name__ == "__main__":
    sys.exit(main())
