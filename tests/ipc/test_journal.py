"""Records of a process: readable, as JSON, and in journald's own form."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ipc import systemd
from ipc.journal import Journal, message_id


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def _no_inherited_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    monkeypatch.delenv("CORTEX_LOG", raising=False)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def lines(stream: io.StringIO) -> list[str]:
    """What was written, without the time of day."""
    return [re.sub(r"^\d\d:\d\d:\d\d ", "", x) for x in stream.getvalue().splitlines()]


def test_a_line_has_time_process_level_message_and_fields(stream: io.StringIO) -> None:
    journal = Journal("neurond", stream=stream)
    journal.info("ready", event="node.started", node="a", generation=3, device=None)
    journal.warning("slow")
    journal.error("model marked poisoned", model="m")
    assert re.match(r"\d\d:\d\d:\d\d neurond  ready", stream.getvalue())
    assert lines(stream) == [
        "neurond  ready (node=a, generation=3)",
        "neurond  warning: slow",
        "neurond  error: model marked poisoned (model=m)",
    ]


def test_the_time_is_the_clocks_local_time(stream: io.StringIO, clock: Clock) -> None:
    Journal("d", stream=stream, clock=clock).info("x")
    expected = time.strftime("%H:%M:%S", time.localtime(clock.now_s))
    assert stream.getvalue() == f"{expected} d  x\n"


def test_a_message_can_not_forge_a_line_or_drive_a_terminal(
    stream: io.StringIO,
) -> None:
    Journal("d", stream=stream).info("a\n12:00:00 d  b\x1b[2J\x7f\x9b", name="x\ry")
    assert lines(stream) == [r"d  a\n12:00:00 d  b\x1b[2J\x7f\x9b (name=x\ry)"]


def test_half_a_character_is_written_as_an_escape(stream: io.StringIO) -> None:
    Journal("d", stream=stream).info("\ud83d")
    assert lines(stream) == [r"d  \ud83d"]


def test_json_is_one_object_per_line(
    stream: io.StringIO, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORTEX_LOG", "json")
    journal = Journal("d", stream=stream, clock=clock)
    journal.error("x\ny", event="device.died", device="cpu-0", path=Path("/p"), level=1)
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {
            "time_s": clock.now_s,
            "process": "d",
            "level": "error",
            "message": "x\ny",
            "event": "device.died",
            "device": "cpu-0",
            "path": "/p",
        }
    ]


def test_a_given_mode_beats_the_environment(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORTEX_LOG", "json")
    Journal("d", stream=stream, mode="text").info("x")
    assert lines(stream) == ["d  x"]


def test_a_repeat_is_written_once_and_counted(
    stream: io.StringIO, clock: Clock
) -> None:
    journal = Journal("d", stream=stream, clock=clock)
    for _ in range(413):
        journal.error("no", device="a")
    journal.error("no", device="b")
    assert lines(stream) == ["d  error: no (device=a)", "d  error: no (device=b)"]
    clock.now_s += 11
    journal.info("next")
    assert lines(stream)[2:] == ["d  error: no (× 412 more) (device=a)", "d  next"]
    journal.error("no", device="a")
    assert lines(stream)[4:] == ["d  error: no (device=a)"]


def test_counts_are_written_by_flush_when_due_and_by_close_at_once(
    stream: io.StringIO, clock: Clock
) -> None:
    journal = Journal("d", stream=stream, clock=clock)
    journal.info("a")
    journal.info("a")
    journal.flush()
    assert lines(stream) == ["d  a"]
    clock.now_s += 10
    journal.flush()
    assert lines(stream) == ["d  a", "d  a (× 1 more)"]
    journal.info("b")
    journal.info("b")
    journal.close()
    assert lines(stream)[2:] == ["d  b", "d  b (× 1 more)"]


def test_repeats_may_be_written_each_time(stream: io.StringIO) -> None:
    journal = Journal("d", stream=stream, fold_s=0)
    journal.info("a")
    journal.info("a")
    assert lines(stream) == ["d  a", "d  a"]


def test_memory_for_repeats_is_bounded(stream: io.StringIO, clock: Clock) -> None:
    journal = Journal("d", stream=stream, clock=clock)
    for number in range(1000):
        journal.info(f"{number}")
    assert len(journal._folds) <= 256
    assert len(lines(stream)) == 1000


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("mode", ["text", "json", "native"])
def test_nothing_ever_raises(mode: str, tmp_path: Path) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (closed, Broken(), open("/dev/full", "w")):  # noqa: SIM115
        journal = Journal(
            "d",
            stream=stream,
            mode=mode,  # type: ignore[arg-type]
            send=lambda fields: systemd.send_native(fields, tmp_path / "none"),
        )
        journal.error("x", event="e", odd={(1, 2): 3}, device=object())


@pytest.fixture
def journald(tmp_path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(tmp_path / "journald"))
    sock.settimeout(5)
    return sock


def native(journald: socket.socket, stream: io.StringIO) -> Journal:
    path = Path(journald.getsockname())
    return Journal(
        "neurond",
        stream=stream,
        mode="native",
        send=lambda fields: systemd.send_native(fields, path),
    )


def test_journald_gets_fields_of_its_own(
    journald: socket.socket, stream: io.StringIO
) -> None:
    native(journald, stream).error(
        "model marked poisoned",
        event="model.poisoned",
        device="gpu-0",
        generation=2,
        **{"_trusted": "no", "9 odd-näme": 1, "priority": 0},
    )
    record = journald.recv(2000).decode().splitlines()
    assert sorted(record) == sorted(
        [
            "DEVICE=gpu-0",
            "GENERATION=2",
            "TRUSTED=no",
            "ODD_N_ME=1",
            "EVENT=model.poisoned",
            f"MESSAGE_ID={message_id('model.poisoned')}",
            "MESSAGE=model marked poisoned",
            "PRIORITY=3",
            "SYSLOG_IDENTIFIER=neurond",
        ]
    )
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("level", "priority"), [("info", 6), ("warning", 4), ("error", 3)]
)
def test_levels_are_syslog_priorities(
    level: str, priority: int, journald: socket.socket, stream: io.StringIO
) -> None:
    getattr(native(journald, stream), level)("x")
    assert f"PRIORITY={priority}\n".encode() in journald.recv(2000)


def test_when_journald_is_gone_the_line_goes_to_stderr(
    journald: socket.socket, stream: io.StringIO
) -> None:
    journal = native(journald, stream)
    journald.close()
    journal.info("x")
    assert lines(stream) == ["neurond  x"]


def test_a_message_id_is_128_bits_and_never_changes() -> None:
    assert message_id("device.died") == "c85c6d96e4255a76f20f5befb8ca2ede"
    assert message_id("device.died") != message_id("device.ready")


PROGRAM = """
import os, sys
from ipc.journal import Journal
stat = os.fstat(2)
if sys.argv[1] == "matching":
    os.environ["JOURNAL_STREAM"] = f"{stat.st_dev}:{stat.st_ino}"
else:
    os.environ["JOURNAL_STREAM"] = f"{stat.st_dev}:{stat.st_ino + 1}"
print(Journal("d")._mode)
"""


@pytest.mark.parametrize(
    ("stream_is", "log", "mode"),
    [
        ("matching", "", "native"),
        ("matching", "json", "json"),
        ("matching", "text", "text"),
        ("other", "", "text"),
    ],
)
def test_journald_is_used_only_when_stderr_is_its_stream(
    stream_is: str, log: str, mode: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, stream_is],
        env=os.environ | {"CORTEX_LOG": log},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.stdout == mode + "\n"


JOURNALD = Path("/lib/systemd/systemd-journald")
REAL = r"""
set -e
mount --no-mtab -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/log/journal
"$1" &
until [ -S /run/systemd/journal/socket ]; do sleep 0.02; done
"$2" -c '
from ipc.journal import Journal
journal = Journal("neurond", mode="native")
journal.error("model marked poisoned\nwhy", event="model.poisoned", device="gpu-0")
journal.info("big", device="gpu-0", blob="z" * 400_000)
'
until [ "$(journalctl -o cat DEVICE=gpu-0 | grep -c big)" = 1 ]; do sleep 0.02; done
SYSTEMD_COLORS=0 journalctl --all -o json DEVICE=gpu-0
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a private /run needs root")
@pytest.mark.skipif(not JOURNALD.exists(), reason="there is no systemd-journald")
@pytest.mark.skipif(not shutil.which("unshare"), reason="there is no unshare")
def test_a_real_journald_reads_the_fields_back() -> None:
    private = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*private, "true"], capture_output=True).returncode:
        pytest.skip("namespaces are not permitted here")
    done = subprocess.run(
        [*private, "bash", "-c", REAL, "-", str(JOURNALD), sys.executable],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=20,
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 2, done.stderr
    marked, big = records
    assert marked["MESSAGE"] == "model marked poisoned\nwhy"
    assert marked["MESSAGE_ID"] == message_id("model.poisoned")
    assert (marked["PRIORITY"], marked["SYSLOG_IDENTIFIER"]) == ("3", "neurond")
    assert big["BLOB"] == "z" * 400_000
