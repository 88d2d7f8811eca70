"""A tenth of the ring's crash drill, and proof that it sees what it looks for."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from ipc.ring import Producer, create_ring
from tests.drills.ring import Counts, Reader, record, run


@pytest.mark.drill
def test_a_hundred_kills_of_each_side_corrupt_lose_and_hang_nothing() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for side, counts in run(kills=100, seed=20).items():
        assert counts.kills == 100, side
        assert counts.bad == 0, f"{side}: {counts}"
        assert counts.records > 500, f"{side}: {counts}"
        assert counts.repeated <= 100, f"{side}: {counts}"
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.drill
def test_the_command_prints_its_counts_and_ends_in_zero() -> None:
    command = [sys.executable, "-m", "tests.drills.ring", "--kills", "2", "--seed", "3"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(" kills, ")[0] for line in lines] == [
        "producer: 2",
        "consumer: 2",
    ]
    assert all(line.endswith("0 corrupt, 0 lost, 0 hung") for line in lines)


@pytest.mark.parametrize(
    ("sent", "corrupt", "lost"),
    [
        ([record(0), record(1), record(2)], 0, 0),
        ([record(0), record(2)], 0, 1),
        ([record(0), record(1)[:-1] + b"?"], 1, 0),
        ([record(0), record(1), record(1)], 1, 0),
    ],
)
def test_the_drill_tells_gaps_and_foreign_bytes(
    sent: list[bytes], corrupt: int, lost: int
) -> None:
    fd = create_ring(1 << 17, generation=1)
    producer, reader = Producer(os.dup(fd), generation=1), Reader(fd, Counts())
    for one in sent:
        producer.put(one)
    reader.read_all()
    assert (reader.counts.corrupt, reader.counts.lost) == (corrupt, lost)
    reader.close()
    producer.close()
    os.close(fd)
