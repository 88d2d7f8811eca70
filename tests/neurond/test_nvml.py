from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest

from ipc.child import EXIT_OK, EXIT_TEMPORARY
from ipc.process import PARENT_PID
from tests.ipc.processkit import PATIENCE_S, wait_for
from tests.neurond.fakenvml import GIB, environ, gpu

Watch = Callable[[dict[str, Any]], tuple[socket.socket, subprocess.Popen[bytes]]]


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """Starts the watching process on a host that is played."""
    started: list[tuple[socket.socket, subprocess.Popen[bytes]]] = []

    def start(
        host: dict[str, Any],
    ) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is
        with theirs:
            child = subprocess.Popen(
                command(theirs.fileno(), tmp_path / "kmsg"),
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                env={
                    **os.environ,
                    **environ(tmp_path, host),
                    PARENT_PID: str(os.getpid()),
                },
            )
        ours.settimeout(PATIENCE_S)
        started.append((ours, child))
        return ours, child

    yield start
    for ours, child in started:
        ours.close()
        child.kill()
        child.communicate(timeout=PATIENCE_S)


def command(fd: int, kernel_log: Path) -> list[str]:
    options = ["--fd", str(fd), "--interval-s", "0.02"]
    options += ["--kernel-log", str(kernel_log)]
    return [sys.executable, "-m", "neurond.nvml", *options]


def told(sock: socket.socket) -> dict[str, Any]:
    taken: dict[str, Any] = msgpack.unpackb(sock.recv(1 << 17))
    return taken


def reading(sock: socket.socket) -> dict[str, Any]:
    return dict(told(sock)["gpus"])


def test_readings_come_again_and_again_by_uuid(watch: Watch) -> None:
    full = gpu(
        "GPU-a",
        "0000:03:00.0",
        utilisation=37,
        temperature=61,
        power_mw=250_500,
        processes=[[123, 5 * GIB], [124, None]],
        recovery=1,
        remapped=[1, 0],
    )
    sock, _ = watch({"gpus": [full, gpu("GPU-b", "0000:04:00.0")]})
    for _ in range(3):
        seen = reading(sock)
        assert seen["GPU-a"] == {
            "memory_total_bytes": 80 * GIB,
            "memory_free_bytes": 40 * GIB,
            "utilisation": 0.37,
            "temperature_c": 61,
            "power_w": 250.5,
            "processes": [[123, 5 * GIB], [124, 0]],
            "recovery_action": 1,
            "remap": "pending",
        }
        assert seen["GPU-b"]["utilisation"] is None
        assert seen["GPU-b"]["processes"] == []
        assert seen["GPU-b"]["recovery_action"] is None
        assert seen["GPU-b"]["remap"] is None


def test_xids_arrive_at_once_with_what_the_gpu_shows_since_then(
    watch: Watch, tmp_path: Path
) -> None:
    events = tmp_path / "events"
    events.touch()
    pair = [gpu("GPU-a", "00000000:03:00.0"), gpu("GPU-b", "00000000:04:00.0")]
    sock, _ = watch({"gpus": pair, "events": str(events)})
    assert told(sock)["xids"] == []
    with events.open("a") as file:
        file.write(json.dumps({"gpu": 1, "xid": 48, "recovery": 1}) + "\n")
        file.write(json.dumps({"gpu": 0, "gone": True}) + "\n")
    heard = told_with_xids(sock)
    assert heard["xids"] == [["GPU-b", 48, None]]
    assert heard["gpus"]["GPU-b"]["recovery_action"] == 1
    gone = {"error": "DeviceGetMemoryInfo: GPU is lost", "lost": True}
    wait_for(lambda: reading(sock)["GPU-a"] == gone, "a GPU that is gone")


def test_an_xid_is_told_until_it_could_be_sent(watch: Watch, tmp_path: Path) -> None:
    events = tmp_path / "events"
    events.touch()
    busy = gpu("GPU-a", "0000:03:00.0", processes=[[1, 1]] * 300)
    sock, child = watch({"gpus": [busy], "events": str(events)})
    reading(sock)
    process = psutil.Process(child.pid)
    start = process.num_ctx_switches().voluntary
    wait_for(lambda: process.num_ctx_switches().voluntary > start + 40, "a full line")
    with events.open("a") as file:
        for xid in (13, 94):
            file.write(json.dumps({"gpu": 0, "xid": xid}) + "\n")
    seen: list[int] = []
    while len(seen) < 2:
        seen += [xid for _, xid, _ in told(sock)["xids"]]
    assert seen == [13, 94]


def test_s36_the_kernels_log_is_heard_where_it_can_be_read(
    watch: Watch, tmp_path: Path
) -> None:
    log = tmp_path / "kmsg"
    log.write_text("NVRM: Xid (PCI:0000:03:00): 45, pid=1, long ago\n")
    sock, _ = watch({"gpus": [gpu("GPU-a", "00000000:03:00.0")]})
    reading(sock)
    with log.open("a") as file:
        file.write("NVRM: Xid (PCI:0000:03:00): 13, pid='4242', name=python\n")
        file.write("NVRM: GPU 0000:03:00.0: GPU has fallen off the bus.\n")
    seen = told_with_xids(sock)["xids"]
    assert seen[0] == ["GPU-a", 13, 4242]
    if len(seen) < 2:
        seen += told_with_xids(sock)["xids"]
    assert seen[1] == ["GPU-a", 79, None]


def told_with_xids(sock: socket.socket) -> dict[str, Any]:
    while not (heard := told(sock))["xids"]:
        pass
    return heard


def test_the_process_bears_its_title(watch: Watch) -> None:
    sock, child = watch({"gpus": []})
    assert reading(sock) == {}
    assert psutil.Process(child.pid).cmdline()[0] == "neurond: nvml"


def test_it_ends_when_the_supervisor_closes(watch: Watch) -> None:
    sock, child = watch({"gpus": []})
    reading(sock)
    sock.close()
    assert child.wait(PATIENCE_S) == EXIT_OK


def test_a_supervisor_that_does_not_read_only_misses_readings(watch: Watch) -> None:
    busy = gpu("GPU-a", "0000:03:00.0", processes=[[1, 1]] * 300)
    sock, child = watch({"gpus": [busy]})
    reading(sock)
    process = psutil.Process(child.pid)
    start = process.num_ctx_switches().voluntary
    # one sleep per reading: far more than the socket's buffer takes
    wait_for(lambda: process.num_ctx_switches().voluntary > start + 20, "its loop")
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    num_waiting = 0
    while poll.poll(0) and num_waiting < 20:
        assert "GPU-a" in reading(sock)
        num_waiting += 1
    assert num_waiting < 10
    assert "GPU-a" in reading(sock)


def test_an_nvml_that_refuses_ends_it_with_a_reason(watch: Watch) -> None:
    _, child = watch({"init_error": "Driver/library version mismatch"})
    _, complaint = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == EXIT_TEMPORARY
    assert b"Driver/library version mismatch" in complaint


def test_it_dies_with_its_parent_even_inside_nvml(tmp_path: Path) -> None:
    """A parent of its own is killed while the child hangs in the library."""
    source = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'neurond.nvml', '--once'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    env = {**os.environ, **environ(tmp_path, {"hang": True})}
    env.pop(PARENT_PID, None)
    with subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, env=env
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_for(lambda: title_of(pid) == "neurond: nvml", "the title")
        parent.kill()
    wait_for(lambda: title_of(pid) is None, "the child's death")


def title_of(pid: int) -> str | None:
    """None: it has ended."""
    try:
        words = psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return None
    return words[0] if words else None
