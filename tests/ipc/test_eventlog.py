"""Events across restarts, rotation, torn lines and full disks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ipc.eventlog import EventLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events"


def ids(log: EventLog, after: int = 0, limit: int = 1000) -> list[int]:
    return [event.id for event in log.since(after, limit)]


def test_an_event_has_id_time_kind_and_its_fields(path: Path) -> None:
    log = EventLog(path, clock=lambda: 12.3456)
    event = log.append("device.died", device="gpu-0", generation=2)
    assert (event.id, event.time_s, event.kind) == (1, 12.346, "device.died")
    assert event.fields == {"device": "gpu-0", "generation": 2}
    assert event.to_dict() == {
        "id": 1,
        "time_s": 12.346,
        "kind": "device.died",
        "device": "gpu-0",
        "generation": 2,
    }
    assert json.loads(path.read_text()) == event.to_dict()


def test_fields_can_not_replace_id_time_or_kind(path: Path) -> None:
    event = EventLog(path).append("a", id=99, time_s=0)
    assert event.to_dict()["id"] == 1
    assert event.to_dict()["time_s"] > 0


def test_since_gives_the_oldest_events_after_an_id(path: Path) -> None:
    log = EventLog(path)
    for _ in range(5):
        log.append("a")
    assert ids(log) == [1, 2, 3, 4, 5]
    assert ids(log, after=3) == [4, 5]
    assert ids(log, after=1, limit=2) == [2, 3]
    assert ids(log, after=5) == []
    assert ids(log, after=99) == []
    assert ids(EventLog(path.with_name("none")), after=0) == []


def test_ids_go_on_after_a_restart(path: Path) -> None:
    first = EventLog(path)
    first.append("a", x=1)
    first.append("b")
    again = EventLog(path)
    assert [e.to_dict() for e in again.since(0)] == [
        e.to_dict() for e in first.since(0)
    ]
    assert again.append("c").id == 3


def test_the_file_is_rotated_once_and_both_are_read(path: Path) -> None:
    log = EventLog(path, max_bytes=1000)
    for number in range(100):
        log.append("a", number=number)
    older = path.with_name("events.1")
    assert path.stat().st_size <= 1000
    assert older.stat().st_size <= 1000
    assert sorted(os.listdir(path.parent)) == ["events", "events.1"]
    kept = ids(EventLog(path, max_bytes=1000))
    assert kept[-1] == 100
    assert kept == list(range(kept[0], 101))
    assert len(kept) == len(path.read_text().splitlines()) + len(
        older.read_text().splitlines()
    )


def test_an_event_over_the_limit_is_written_all_the_same(path: Path) -> None:
    log = EventLog(path, max_bytes=100)
    log.append("a", text="x" * 500)
    log.append("b")
    assert ids(EventLog(path, max_bytes=100)) == [1, 2]


def test_a_torn_last_line_costs_that_event_only(path: Path) -> None:
    log = EventLog(path)
    log.append("a")
    log.append("b")
    os.truncate(path, path.stat().st_size - 7)
    again = EventLog(path)
    assert ids(again) == [1]
    event = again.append("c")
    assert event.id == 3, "the torn event's id is not used again"
    assert [e.kind for e in EventLog(path).since(0)] == ["a", "c"]


@pytest.mark.parametrize(
    "line", [b"\xff\xfe\n", b"[]\n", b"{}\n", b'{"id": "x"}\n', b"null\n", b"\n"]
)
def test_a_line_of_nonsense_is_passed_over(path: Path, line: bytes) -> None:
    EventLog(path).append("a")
    with path.open("ab") as file:
        file.write(line)
    EventLog(path).append("b")
    assert [e.kind for e in EventLog(path).since(0)] == ["a", "b"]


def test_memory_holds_a_bounded_number(path: Path) -> None:
    log = EventLog(path)
    for _ in range(5000):
        log.append("a")
    assert ids(log, limit=9999) == list(range(905, 5001))
    assert ids(EventLog(path), limit=9999) == list(range(905, 5001))


def test_what_json_does_not_know_is_written_as_text(path: Path) -> None:
    EventLog(path).append("a", folder=Path("/x"))
    assert EventLog(path).since(0)[0].fields == {"folder": "/x"}


def test_a_disk_that_takes_nothing_loses_history_but_no_event(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "missing" / "events")
    assert log.append("a").id == 1
    assert log.append("b").id == 2
    assert ids(log) == [1, 2]
    assert log.failed_writes == 2


FULL_DISK = """
import pathlib, resource, sys
from ipc.eventlog import EventLog
log = EventLog(pathlib.Path(sys.argv[1]))
log.append("a")
_soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
size = pathlib.Path(sys.argv[1]).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
log.append("torn")
log.append("lost")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.append("b")
print([event.id for event in log.since(0)], log.failed_writes)
"""


def test_a_disk_that_fills_up_and_empties_again_loses_only_that_part(
    path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout == "[1, 2, 3, 4] 2\n"
    assert [(e.id, e.kind) for e in EventLog(path).since(0)] == [(1, "a"), (4, "b")]


def test_what_was_appended_before_a_sigkill_is_there_after_it(path: Path) -> None:
    program = (
        "import os, pathlib, sys; from ipc.eventlog import EventLog\n"
        "log = EventLog(pathlib.Path(sys.argv[1]))\n"
        "for n in range(50): log.append('a')\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], timeout=20)
    assert done.returncode == -signal.SIGKILL
    assert ids(EventLog(path)) == list(range(1, 51))
