"""A tenth of the ring's crash drill, and proof that it sees what it looks for."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys

import pytest

from ipc.ring import Producer, create_ring
from tests.drills.ring import Counts, Reader, record, run

COUNTS = r"(\w+): 100 kills, (\d+) records, (\d+) repeated: 0 corrupt, 0 lost, 0 hung"


@pytest.mark.drill
def test_a_hundred_kills_of_each_side_corrupt_lose_and_hang_nothing() -> None:
    """By the command, whose forks are a tenth of the test process's in size."""
    command = [sys.executable, "-m", "tests.drills.ring"]
    done = subprocess.run(
        [*command, "--kills", "100", "--seed", "20"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [re.fullmatch(COUNTS, line) for line in done.stdout.splitlines()]
    assert [counts and counts[1] for counts in found] == ["producer", "consumer"]
    for counts in found:
        assert counts
        assert int(counts[2]) > 500, done.stdout
        assert int(counts[3]) <= 100, done.stdout


def test_the_drill_leaves_no_descriptor() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    assert not any(counts.bad for counts in run(kills=2, seed=3).values())
    assert len(os.listdir("/proc/self/fd")) == before


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
