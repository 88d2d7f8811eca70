"""CPU per message and latency of the ring beside a pipe, a unix socket and ZeroMQ.

    python bench/ring.py [--rounds 5] [--messages 20000]

Two processes: blocking producer, consumer in uvloop; the payload is one msgpack list,
packed and unpacked. Rounds go through all transports in turn, so that a busy host
falls on all of them; medians of the rounds are printed and written to
bench/results/ring.json.

    CPU       process time of both sides, threads included, per message, while the
              producer sends as fast as it can
    latency   send to receipt, one way, to a consumer that sleeps (a message per ms)

Ends with 1 when zmq.asyncio takes less than 5 times the ring's CPU per message.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import uvloop

if not __package__:  # run as a file: the packages lie beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import transports  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "ring.json"
GOAL = 5.0
SIZES = (100, 4096)
DEADLINE_S = 60
_OVERHEAD_BYTES = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=20_000)
    options = parser.parse_args()
    samples = [
        measure(make, size_bytes, options.messages, pause_s)
        for _ in range(options.rounds)
        for make in transports.ALL
        for size_bytes in SIZES
        for pause_s in (0.0, 0.001)
    ]
    report = summarise(samples)
    print_table(report)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if report["zmq_cpu_ratio"] >= GOAL else 1


def measure(
    make: Callable[[], transports.Transport],
    size_bytes: int,
    messages: int,
    pause_s: float,
) -> dict[str, Any]:
    """One transport, one size; `pause_s` between messages = the latency run."""
    transport = make()
    count = messages if not pause_s else 400
    go_reader, go_writer = os.pipe()
    answer_reader, answer_writer = os.pipe()
    producer = _fork(
        lambda: _produce(transport, size_bytes, count, pause_s, go_reader),
        answer_writer,
    )
    consumer = _fork(lambda: _consume(transport, count, go_writer), answer_writer)
    os.close(answer_writer)
    with os.fdopen(answer_reader) as answers:
        facts = [json.loads(line) for line in answers]
    for pid in (producer, consumer):
        os.waitpid(pid, 0)
    for fd in (go_reader, go_writer):
        os.close(fd)
    sample: dict[str, Any] = {
        "transport": transport.name,
        "size_bytes": size_bytes,
        "paced": bool(pause_s),
    }
    for fact in facts:
        sample.update(fact)
    return sample


def _fork(act: Callable[[], dict[str, float]], answer_fd: int) -> int:
    pid = os.fork()
    if pid == 0:
        signal.alarm(DEADLINE_S)
        line = json.dumps(act()) + "\n"
        os.write(answer_fd, line.encode())
        os._exit(0)
    return pid


def _produce(
    transport: transports.Transport,
    size_bytes: int,
    count: int,
    pause_s: float,
    go_fd: int,
) -> dict[str, float]:
    body = b"x" * (size_bytes - _OVERHEAD_BYTES)
    os.read(go_fd, 1)
    send = transport.sender()
    time.sleep(0.1)  # threads of the transport connect; the consumer falls asleep
    cpu_s = time.process_time()
    for number in range(count):
        send(msgpack.packb([18, number, time.monotonic_ns(), body]))
        if pause_s:
            time.sleep(pause_s)
    os.read(go_fd, 1)  # all received: threads of the transport are done too
    return {"producer_us": (time.process_time() - cpu_s) / count * 1e6}


def _consume(
    transport: transports.Transport, count: int, go_fd: int
) -> dict[str, float]:
    latencies_ns: list[int] = []

    def on_record(record: bytes | memoryview) -> bool:
        message = msgpack.unpackb(record)
        latencies_ns.append(time.monotonic_ns() - message[2])
        return len(latencies_ns) >= count

    async def receive() -> float:
        def ready() -> None:
            os.write(go_fd, b"g")

        cpu_s = time.process_time()
        await transport.receive(ready, on_record)
        return time.process_time() - cpu_s

    cpu_s = uvloop.run(receive())
    os.write(go_fd, b"g")
    ordered = sorted(latencies_ns)
    return {
        "consumer_us": cpu_s / count * 1e6,
        "p50_us": ordered[len(ordered) // 2] / 1e3,
        "p99_us": ordered[len(ordered) * 99 // 100] / 1e3,
    }


def summarise(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds; each transport's CPU as a multiple of the ring's."""
    names = dict.fromkeys(sample["transport"] for sample in samples)
    rows = [_row(samples, name, size) for name in names for size in SIZES]
    ring = {row["size_bytes"]: row["cpu_us"] for row in rows[: len(SIZES)]}
    for row in rows:
        row["cpu_ratio"] = round(row["cpu_us"] / ring[row["size_bytes"]], 2)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "rounds": len(samples) // (len(rows) * 2),
        "rows": rows,
        "zmq_cpu_ratio": next(
            row["cpu_ratio"] for row in rows if row["transport"] == "zmq.asyncio"
        ),
    }


def _row(samples: list[dict[str, Any]], name: str, size_bytes: int) -> dict[str, Any]:
    mine = [s for s in samples if s["transport"] == name]
    mine = [s for s in mine if s["size_bytes"] == size_bytes]

    def median(key: str, *, paced: bool) -> float:
        values: list[float] = [s[key] for s in mine if s["paced"] == paced]
        return statistics.median(values)

    producer_us = median("producer_us", paced=False)
    consumer_us = median("consumer_us", paced=False)
    return {
        "transport": name,
        "size_bytes": size_bytes,
        "cpu_us": round(producer_us + consumer_us, 2),
        "producer_us": round(producer_us, 2),
        "consumer_us": round(consumer_us, 2),
        "latency_p50_us": round(median("p50_us", paced=True), 1),
        "latency_p99_us": round(median("p99_us", paced=True), 1),
    }


def print_table(report: dict[str, Any]) -> None:
    print(f"{report['machine']}, Python {report['python']}, {report['rounds']} rounds")
    print("transport             bytes  CPU µs/msg  × ring   p50 µs   p99 µs")
    for row in report["rows"]:
        print(
            f"{row['transport']:<20} {row['size_bytes']:>6} {row['cpu_us']:>11.2f}"
            f" {row['cpu_ratio']:>7.2f} {row['latency_p50_us']:>8.0f}"
            f" {row['latency_p99_us']:>8.0f}"
        )
    ratio = report["zmq_cpu_ratio"]
    verdict = "met" if ratio >= GOAL else "missed"
    print(f"zmq.asyncio takes {ratio:.1f}x the ring's CPU; goal {GOAL}x: {verdict}")


if __name__ == "__main__":
    sys.exit(main())
