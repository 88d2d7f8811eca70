from __future__ import annotations

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
                command(theirs.fileno()),
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


def command(fd: int) -> list[str]:
    options = ["--fd", str(fd), "--interval-s", "0.02"]
    return [sys.executable, "-m", "neurond.nvml", *options]


def reading(sock: socket.socket) -> dict[str, Any]:
    taken: dict[str, Any] = msgpack.unpackb(sock.recv(1 << 17))
    return taken


def test_readings_come_again_and_again_by_uuid(watch: Watch) -> None:
    full = gpu(
        "GPU-a",
        "0000:03:00.0",
        utilisation=37,
        temperature=61,
        power_mw=250_500,
        processes=[[123, 5 * GIB], [124, None]],
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
        }
        assert seen["GPU-b"]["utilisation"] is None
        assert seen["GPU-b"]["processes"] == []


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
