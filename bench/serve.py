"""Cortex beside other servers: streams of chat over HTTP, the same weights, one core.

    python -m bench.serve [--rounds 5] [--transformers PATH] [--llama-python PATH]

PATHs are the `transformers` executable and the Python of environments where the peers
are installed (docs: bench/RESULTS.md). Every server, all its processes, runs on core 0
with one thread; the client on core 1. Rounds take turns; a peer that isn't measured is
frozen, as it may spin. Per round and server:

    one        one stream of 64 tokens                       tokens/s
    sixteen    sixteen streams of 64 tokens                  tokens/s of all together
    long       a prompt of about 1,400 tokens, seen never    s to the first token
    second     the next turn of that chat                    s to the first token

Medians go to bench/results/serve.json. Ends with 1 when a goal is missed.
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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import servers
from bench.servers import Server
from bench.streams import Messages, ServerRefused, Timeline, chat

RESULTS = Path(__file__).parent / "results" / "serve.json"
SERVER_CORES, CLIENT_CORES = "0", {1}
NUM_TOKENS = 64
MEASURES = ("one", "sixteen", "long", "second")
TOPICS = (
    *("the sea", "old castles", "cooking rice", "a steam engine", "bees", "volcanoes"),
    *("chess", "winter", "rivers", "music", "bread", "clocks", "forests", "ships"),
    *("glass", "the moon"),
)
# (measure, peer, ratio at least): ours over theirs, or theirs over ours for times
GOALS = (
    ("sixteen", "transformers", 1.5),
    ("sixteen", "llama.cpp", 4.0),
    ("one", "transformers", 2.0),
    ("one", "llama.cpp", 1.0),
    ("long", "transformers", 1.0),
    ("long", "llama.cpp", 1.0),
)
SECOND_TURN_AT_MOST = 0.15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--transformers", metavar="PATH")
    parser.add_argument("--llama-python", metavar="PATH")
    options = parser.parse_args()
    with ExitStack() as stack:
        running = _start(stack, options)
        os.sched_setaffinity(0, CLIENT_CORES & os.sched_getaffinity(0) or {0})
        samples = measure(running, options.rounds)
    report = summarise(samples)
    print_table(report)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(goal["met"] for goal in report["goals"]) else 1


def _start(stack: ExitStack, options: argparse.Namespace) -> list[Server]:
    """One after the other, each frozen once it has answered."""
    ways = [servers.cortex(SERVER_CORES)]
    if options.transformers:
        folder = servers.converted_model()
        ways.append(servers.transformers(SERVER_CORES, options.transformers, folder))
    if options.llama_python:
        file = servers.gguf()
        ways.append(servers.llama(SERVER_CORES, options.llama_python, file))
    running: list[Server] = []
    for way in ways:
        server = stack.enter_context(way)
        asyncio.run(_first_answer(server))
        server.pause()
        stack.callback(server.go_on)
        running.append(server)
    return running


def measure(running: list[Server], rounds: int) -> dict[str, dict[str, list[float]]]:
    samples: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds + 1):  # the first one warms up
        for server in running:
            server.go_on()
            row = asyncio.run(_round(server, number))
            server.pause()
            print(number, server.name, {k: round(v, 3) for k, v in row.items()})
            if number > 0:
                kept = samples.setdefault(server.name, {m: [] for m in MEASURES})
                for name, value in row.items():
                    kept[name].append(value)
    return samples


async def _round(server: Server, number: int) -> dict[str, float]:
    first = await _ask(server, _long_chat(number), 16)
    turns = [*_long_chat(number), {"role": "assistant", "content": first.text}]
    second = await _ask(server, [*turns, _user("And what came after that?")], 16)
    return {
        "one": await _rate(server, number, 1),
        "sixteen": await _rate(server, number, 16),
        "long": first.first_s,
        "second": second.first_s,
    }


async def _first_answer(server: Server) -> None:
    """Some say that they are ready and load on."""
    for _ in range(20):
        try:
            await _ask(server, [_user("Hello!")], 4)
            return
        except ServerRefused:
            await asyncio.sleep(1)
    raise SystemExit(f"{server.name} refuses to answer")


async def _rate(server: Server, number: int, num_streams: int) -> float:
    """Tokens per second of all streams, from the first request to the last piece."""
    begun_s = time.perf_counter()
    asked = [
        _ask(server, [_user(f"Write a long story about {topic}, part {number}.")])
        for topic in TOPICS[:num_streams]
    ]
    answers = await asyncio.gather(*asked)
    seconds = max(answer.piece_s[-1] for answer in answers) - begun_s
    return sum(answer.num_tokens for answer in answers) / seconds


async def _ask(
    server: Server, messages: Messages, num_tokens: int = NUM_TOKENS
) -> Timeline:
    answer = await chat(server.url, server.model, messages, max_tokens=num_tokens)
    answer.num_tokens = answer.num_tokens or len(answer.piece_s)
    return answer


def _long_chat(number: int) -> Messages:
    items = " ".join(f"{TOPICS[i % 16]} number {i + 7 * number}" for i in range(230))
    return [_user(f"List {number}: {items}. Summarise it.")]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def summarise(samples: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    medians = {
        name: {m: statistics.median(values) for m, values in kept.items()}
        for name, kept in samples.items()
    }
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "rounds": len(samples["cortex"]["one"]),
        "rows": [{"server": name, **row} for name, row in medians.items()],
        "goals": _judge(medians),
    }


def _judge(medians: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    ours = medians["cortex"]
    verdicts = [
        _verdict(measure_, peer, _ratio(measure_, ours, medians[peer]), least)
        for measure_, peer, least in GOALS
        if peer in medians
    ]
    share = ours["second"] / ours["long"]
    own = {"measure": "second/long", "peer": "itself", "goal": SECOND_TURN_AT_MOST}
    met = share <= SECOND_TURN_AT_MOST
    return [*verdicts, {**own, "ratio": round(share, 3), "met": met}]


def _ratio(measure_: str, ours: dict[str, float], theirs: dict[str, float]) -> float:
    """Above 1 is better for us."""
    if measure_ in ("long", "second"):
        return theirs[measure_] / ours[measure_]
    return ours[measure_] / theirs[measure_]


def _verdict(measure_: str, peer: str, ratio: float, least: float) -> dict[str, Any]:
    met = ratio >= least
    return {
        "measure": measure_,
        "peer": peer,
        "goal": least,
        "ratio": round(ratio, 2),
        "met": met,
    }


def print_table(report: dict[str, Any]) -> None:
    print(f"{report['machine']}, Python {report['python']}, {report['rounds']} rounds")
    print("server         one/s  sixteen/s    long s  second s")
    for row in report["rows"]:
        print(
            f"{row['server']:<13} {row['one']:>6.1f} {row['sixteen']:>10.1f}"
            f" {row['long']:>9.2f} {row['second']:>9.2f}"
        )
    for goal in report["goals"]:
        verdict = "met" if goal["met"] else "missed"
        name = f"{goal['measure']} against {goal['peer']}"
        print(f"{name}: {goal['ratio']}, goal {goal['goal']}: {verdict}")


if __name__ == "__main__":
    sys.exit(main())
