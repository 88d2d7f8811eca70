"""What HTTP, rings and the gateway cost: sixteen streams against the engine alone.

    python -m bench.overhead [--rounds 5]

The same weights, prompts and numbers of tokens twice: as chats through the gateway, and
as token ids to the engine in a process by itself. In both the device has core 0 and one
thread; gateway, node and clients are on core 1. The two take turns within each round;
the ratio is the median of the rounds' ratios. Goal: at least 0.93. Results go to
bench/results/overhead.json; ends with 1 when the goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import servers
from bench.latency import pin
from bench.servers import Server
from bench.streams import Messages, Timeline, chat
from neurond.device.preload import ENVIRONMENT

RESULTS = Path(__file__).parent / "results" / "overhead.json"
NUM_STREAMS, NUM_TOKENS = 16, 64
GOAL = 0.93
DEVICE_CORE = "0"


class Alone:
    """The engine in a process of its own, on the device's core."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.info = self._answer()

    def rate(self, prompts: list[list[int]]) -> float:
        """Tokens per second."""
        assert self._process.stdin is not None
        asked = json.dumps({"prompts": prompts, "tokens": NUM_TOKENS})
        self._process.stdin.write(asked + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if answer["tokens"] != NUM_STREAMS * NUM_TOKENS:
            raise SystemExit(f"{answer['tokens']} tokens by the engine alone")
        return float(answer["tokens"] / answer["seconds"])

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the engine alone ended")
        return json.loads(line)


@contextmanager
def alone(folder: Path) -> Iterator[Alone]:
    argv = [sys.executable, "-m", "bench.inprocess", str(folder), "--threads", "1"]
    process = subprocess.Popen(
        ["taskset", "-c", DEVICE_CORE, *argv],
        cwd=servers.ROOT,
        env={**os.environ, **ENVIRONMENT},  # as the device process has it
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Alone(process)
    finally:
        process.kill()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with servers.cortex("0,1") as server, alone(servers.converted_model()) as engine:
        pin(server)
        _check_weights(server, engine.info)
        rows = [_round(server, engine, n) for n in range(options.rounds + 1)][1:]
        info = engine.info
    report = summarise(rows, info)
    print_table(report)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if report["met"] else 1


def _check_weights(server: Server, info: dict[str, Any]) -> None:
    """Both have them in the same form."""
    address = f"{server.node_url}/models/{server.model}/capabilities"
    with urllib.request.urlopen(address, timeout=30) as answer:
        quant = json.load(answer)["quant"]
    if quant != info["quant"]:
        raise SystemExit(f"the node has {quant}, the engine alone {info['quant']}")


def _round(server: Server, engine: Alone, number: int) -> dict[str, float]:
    """The first of the two is another one each time."""
    chats = [_chat(number, index) for index in range(NUM_STREAMS)]
    prompts = [_tokens(server, messages) for messages in chats]
    row: dict[str, float] = {}
    for way in ("engine", "gateway") if number % 2 else ("gateway", "engine"):
        if way == "engine":
            row[way] = engine.rate(prompts)
        else:
            row[way] = asyncio.run(_rate(server, chats))
    row["ratio"] = row["gateway"] / row["engine"]
    print(number, {name: round(value, 3) for name, value in row.items()})
    return row


def _chat(number: int, index: int) -> Messages:
    text = f"Round {number}: write a long story about lighthouse number {index}."
    return [{"role": "user", "content": text}]


def _tokens(server: Server, messages: Messages) -> list[int]:
    request = urllib.request.Request(
        f"{server.url}/tokenize",
        data=json.dumps({"model": server.model, "messages": messages}).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        tokens: list[int] = json.load(answer)["tokens"]
        return tokens


async def _rate(server: Server, chats: list[Messages]) -> float:
    """Tokens per second, from the first request to the last piece."""
    begun_s = time.perf_counter()
    answers = await asyncio.gather(*[_ask(server, messages) for messages in chats])
    seconds = max(answer.piece_s[-1] for answer in answers) - begun_s
    return sum(answer.num_tokens for answer in answers) / seconds


async def _ask(server: Server, messages: Messages) -> Timeline:
    answer = await chat(
        server.url, server.model, messages, max_tokens=NUM_TOKENS, ignore_eos=True
    )
    if answer.num_tokens != NUM_TOKENS:
        raise SystemExit(f"{answer.num_tokens} tokens through the gateway")
    return answer


def summarise(rows: list[dict[str, float]], info: dict[str, Any]) -> dict[str, Any]:
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "rounds": len(rows),
        "model": f"{info['architecture']}, {info['quant']}",
        "streams": NUM_STREAMS,
        "tokens": NUM_TOKENS,
        "engine_tokens_s": round(medians["engine"], 1),
        "gateway_tokens_s": round(medians["gateway"], 1),
        "ratio": round(medians["ratio"], 3),
        "least_ratio": round(min(row["ratio"] for row in rows), 3),
        "goal": GOAL,
        "met": medians["ratio"] >= GOAL,
    }


def print_table(report: dict[str, Any]) -> None:
    print(f"{report['machine']}, Python {report['python']}, {report['rounds']} rounds")
    print(f"engine alone     {report['engine_tokens_s']:>7.1f} tokens/s")
    print(f"through gateway  {report['gateway_tokens_s']:>7.1f} tokens/s")
    verdict = "met" if report["met"] else "missed"
    print(f"{report['ratio']}x, goal {report['goal']}x: {verdict}")


if __name__ == "__main__":
    sys.exit(main())
