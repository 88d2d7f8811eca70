"""The zygote as a process: what it answers when it must not fork, and how it ends."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack

from ipc.child import EXIT_OK, EXIT_TEMPORARY
from ipc.packet import receive_packet, send_packet
from tests.harness import ROOT, Node

_SERVE = """
import os, socket, sys, threading
from neurond.zygote import Zygote
zygote = Zygote(socket.socket(fileno=int(sys.argv[1])), os.getppid())
if sys.argv[2] == "threaded":
    threading.Thread(target=threading.Event().wait, daemon=True).start()
sys.exit(zygote.serve())
"""
_WAIT_S = 20


def _start(how: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        child = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(theirs.fileno()), how],
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
        )
    return child, ours


def _answer(line: socket.socket) -> Any:
    assert select.select([line], [], [], _WAIT_S)[0], "no answer"
    received = receive_packet(line)
    assert received is not None
    return msgpack.unpackb(received[0])


def test_a_zygote_with_a_thread_too_many_refuses_to_fork_and_ends() -> None:
    child, line = _start("threaded")
    with line:
        send_packet(line, msgpack.packb(["device", "fake-0", {}]))
        assert _answer(line) == ["error", "2 threads instead of 1"]
        assert child.wait(_WAIT_S) == EXIT_TEMPORARY


def test_a_zygote_ends_with_its_supervisor() -> None:
    child, line = _start("alone")
    line.close()
    assert child.wait(_WAIT_S) == EXIT_OK


def test_the_kernel_is_to_take_a_device_before_its_supervisor(tmp_path: Path) -> None:
    with Node(tmp_path) as node:
        pids = {"device": node.device("fake-0")["pid"], "supervisor": node.pid}
        scores = {
            who: int(Path(f"/proc/{pid}/oom_score_adj").read_text())
            for who, pid in pids.items()
        }
    assert scores["device"] >= 500 > scores["supervisor"]
