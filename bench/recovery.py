"""What a streaming client sees of a device that dies: a pause, and what it is made of.

    python -m bench.recovery [--rounds 12] [--threads 1]

Two stacks run side by side, one with `fast` and one with `invariant` numerics, each a
gateway, a node and the embedded model on one CPU device. They take turns. Per round a
stream of chat begins, and at a random moment its device gets SIGKILL. Parts, in order:

    detect        from the kill until the supervisor has told of the death
    memory        until a new life may begin
    respawn       fork until the process takes orders
    load          weights, checks, golden answer, until the device serves again
    first token   the request once more, its prefill, until the client has the next text
    pause         the longest time without text at the client

Medians go to bench/results/recovery.json. Goal: a median pause of at most 1.5 s with
`fast` numerics. Ends with 1 when it is missed, or when a stream was cut.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import servers
from bench.servers import Server
from bench.streams import Timeline, chat
from ipc.control import call

RESULTS = Path(__file__).parent / "results" / "recovery.json"
NUMERICS = ("fast", "invariant")
PARTS = ("detect_s", "memory_s", "respawn_s", "load_s", "first_token_s")
NUM_TOKENS = 112
GOAL_S = 1.5
_EARLIEST_S, _LATEST_S = 0.4, 1.4
_READY_S = 60.0
_POLL_S = 0.05
_CONTROL_S = 10.0

Facts = dict[str, Any]
Row = dict[str, float]


class Stack:
    """A running server and its node's control socket."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._control = _socket_of(server)

    def ask(self, op: str, **args: Any) -> Facts:
        return call(self._control, op, args, timeout_s=_CONTROL_S)

    def device(self) -> Facts:
        """The one device, once it serves its model."""
        end_s = time.monotonic() + _READY_S
        while time.monotonic() < end_s:
            facts = self.ask("status")
            is_loaded = any(m["status"] == "loaded" for m in facts["models"])
            found: Facts = facts["devices"][0]
            if is_loaded and found["state"] == "ready":
                return found
            time.sleep(_POLL_S)
        raise SystemExit(f"{self.server.name}: its device does not come back")

    def last_event(self, kind: str) -> float:
        """When that happened last; seconds since the epoch."""
        told = self.ask("events")["events"]
        return max(float(event["time_s"]) for event in told if event["kind"] == kind)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1, help="of each device")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    samples: dict[str, list[Row]] = {name: [] for name in NUMERICS}
    with ExitStack() as running:
        stacks = _start(running, options.threads)
        print("begin", flush=True)
        for number in range(options.rounds + 1):  # the first one warms up
            for name, stack in stacks.items():
                row = asyncio.run(_round(stack, number, rng))
                told = {part: round(s, 3) for part, s in row.items()}
                print(number, name, told, flush=True)
                if number > 0:
                    samples[name].append(row)
    report = summarise(samples, options.threads)
    print_table(report)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if report["met"] else 1


def _start(running: ExitStack, threads: int) -> dict[str, Stack]:
    stacks: dict[str, Stack] = {}
    for name in NUMERICS:
        settings = {
            "NEURON_ENGINE__NUMERICS": name,
            "NEURON_DEVICES__THREADS": str(threads),
        }
        server = running.enter_context(servers.cortex("0,1", **settings))
        stacks[name] = Stack(server)
    return stacks


def _socket_of(server: Server) -> Path:
    found = [path for path in server.folder.rglob("control.sock") if _is_node(path)]
    return found[0]


def _is_node(path: Path) -> bool:
    return "models" in call(path, "status", {}, timeout_s=_CONTROL_S)


async def _round(stack: Stack, number: int, rng: random.Random) -> Row:
    """One stream, one death."""
    pid = stack.device()["pid"]
    stream = asyncio.create_task(_ask(stack.server, number))
    await asyncio.sleep(rng.uniform(_EARLIEST_S, _LATEST_S))
    killed_s, killed_perf_s = time.time(), time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    timeline = await stream
    if timeline.num_tokens != NUM_TOKENS:
        raise SystemExit(f"{timeline.num_tokens} tokens of a stream over a death")
    stack.device()
    return _row(stack, timeline, killed_s, killed_perf_s)


def _row(
    stack: Stack, timeline: Timeline, killed_s: float, killed_perf_s: float
) -> Row:
    pause_s = max(timeline.gaps_s)
    at = timeline.gaps_s.index(pause_s)
    resumed_s = timeline.piece_s[at + 1] - killed_perf_s + killed_s
    if not timeline.piece_s[at] - 1 < killed_perf_s < timeline.piece_s[at + 1]:
        raise SystemExit("the longest gap of a stream is not at its device's death")
    parts = stack.device()["recovery"]
    return {
        "pause_s": pause_s,
        "detect_s": stack.last_event("device.died") - killed_s,
        "memory_s": parts["memory_s"],
        "respawn_s": parts["respawn_s"],
        "load_s": parts["reload_s"],
        "first_token_s": resumed_s - stack.last_event("device.ready"),
    }


async def _ask(server: Server, number: int) -> Timeline:
    text = f"Write a long story about lighthouse number {number}."
    messages = [{"role": "user", "content": text}]
    return await chat(
        server.url, server.model, messages, max_tokens=NUM_TOKENS, ignore_eos=True
    )


def summarise(samples: dict[str, list[Row]], threads: int) -> dict[str, Any]:
    rows = [{"numerics": name, **_summary(rows)} for name, rows in samples.items()]
    fast = next(row for row in rows if row["numerics"] == "fast")
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "rounds": len(samples["fast"]),
        "threads": threads,
        "rows": rows,
        "goal_s": GOAL_S,
        "met": fast["pause_s"] <= GOAL_S,
    }


def _summary(rows: list[Row]) -> Row:
    medians = {
        name: round(statistics.median(row[name] for row in rows), 4)
        for name in ("pause_s", *PARTS)
    }
    pauses = [row["pause_s"] for row in rows]
    return {
        **medians,
        "least_s": round(min(pauses), 4),
        "most_s": round(max(pauses), 4),
    }


def print_table(report: dict[str, Any]) -> None:
    print(f"{report['machine']}, Python {report['python']}, {report['rounds']} rounds")
    print("numerics     pause   least    most  detect  memory respawn    load   first")
    for row in report["rows"]:
        names = ("pause_s", "least_s", "most_s", *PARTS)
        cells = " ".join(f"{row[name] * 1e3:>7.0f}" for name in names)
        print(f"{row['numerics']:<10} {cells}  ms")
    verdict = "met" if report["met"] else "missed"
    print(f"median pause with fast, goal {report['goal_s']} s: {verdict}")


if __name__ == "__main__":
    sys.exit(main())
