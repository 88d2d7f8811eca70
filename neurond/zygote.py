"""`neurond: zygote`: torch imported once, forked for every device and conversion job.

A process of its own, started by exec. It imports a fixed list and does nothing else: no
tensor, no tokenizer, no thread, no loop, no CUDA call, because whatever it holds every
child inherits (a parallel region here would hang the first large matmul of a child).

    supervisor ── ["device"|"convert", name, settings] + fds ──▶ zygote
               ◀── ["forked", pid] or ["error", text] ──────────
    zygote ── fork ── intermediate ── fork ── device
                          └ exits at once, so the device becomes the supervisor's child

Invariant: before each fork there is one known number of threads and no descriptor of a
GPU; otherwise the answer is an error and the zygote ends.
"""

from __future__ import annotations

import argparse
import importlib
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import msgpack

from ipc.child import (
    EXIT_OK,
    EXIT_TEMPORARY,
    close_fds_except,
    die_with_parent,
    set_title,
)
from ipc.packet import PacketClosed, close_fds, receive_packet, send_packet

_PID = struct.Struct("<q")
_ADOPTION_TIMEOUT_S = 5.0
_ADOPTION_POLL_S = 0.001


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m neurond.zygote")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--preload", choices=("torch", "none"), required=True)
    args = parser.parse_args()
    die_with_parent()
    set_title("neurond: zygote")
    _preload(args.preload)
    sock = socket.socket(fileno=args.fd)
    return Zygote(sock, os.getppid()).serve()


def _preload(what: str) -> None:
    """Everything a child will import; for fake devices that is nothing heavy."""
    if what == "torch":
        from neurond.device.preload import preload

        preload()
    else:
        for name in ("neurond.device.worker", "neurond.device.fake"):
            importlib.import_module(name)


class Zygote:
    """Owns the socket to the supervisor."""

    def __init__(self, sock: socket.socket, supervisor_pid: int) -> None:
        self._sock = sock
        self._supervisor_pid = supervisor_pid
        self._num_threads = _num_threads()

    def serve(self) -> int:
        """Until the supervisor is gone; the exit code."""
        while True:
            select.select([self._sock], [], [])
            try:
                received = receive_packet(self._sock)
            except PacketClosed:
                return EXIT_OK
            if received is None:
                continue  # a wake-up for nothing
            record, fds = received
            answer = self._fork(msgpack.unpackb(record), fds)
            close_fds(fds)
            send_packet(self._sock, msgpack.packb(answer))
            if answer[0] == "error":
                return EXIT_TEMPORARY

    def _fork(self, order: list[Any], fds: list[int]) -> list[Any]:
        unfit = self._unfit()
        if unfit:
            return ["error", unfit]
        reading, writing = os.pipe()
        intermediate = os.fork()
        if intermediate == 0:
            self._be_intermediate(order, fds, writing)
        os.close(writing)
        packed = os.read(reading, _PID.size)
        os.close(reading)
        os.waitpid(intermediate, 0)
        if len(packed) != _PID.size:
            return ["error", "the fork failed"]
        return ["forked", _PID.unpack(packed)[0]]

    def _unfit(self) -> str:
        """Why no child may be forked from this process; "" = it may."""
        if _num_threads() != self._num_threads:
            return f"{_num_threads()} threads instead of {self._num_threads}"
        if _has_gpu_open():
            return "a GPU is open in the zygote"
        return ""

    def _be_intermediate(
        self, order: list[Any], fds: list[int], writing: int
    ) -> NoReturn:
        try:
            pid = os.fork()
            if pid == 0:
                self._be_child(order, fds)
            os.write(writing, _PID.pack(pid))
        finally:
            os._exit(EXIT_OK)

    def _be_child(self, order: list[Any], fds: list[int]) -> NoReturn:
        """Never returns into the zygote's loop, whatever is raised."""
        try:
            self._sock.detach()
            _await_adoption(self._supervisor_pid)
            die_with_parent(self._supervisor_pid)
            close_fds_except(fds)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            kind, name, settings = order
            _run(kind, name, settings, fds)
        except BaseException:  # the process border: what ends a child is written down
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(EXIT_TEMPORARY)


def _run(kind: str, name: str, settings: dict[str, Any], fds: list[int]) -> None:
    os.environ.update(settings.get("environ", {}))
    if kind == "convert":
        from neurond.device import convert

        convert.main(fds[0])
    from neurond.device import worker

    worker.main(
        name, settings["kind"], settings["generation"], fds[0], fds[1], settings
    )


def _await_adoption(supervisor_pid: int) -> None:
    """The intermediate is our parent until it has ended."""
    deadline_s = time.monotonic() + _ADOPTION_TIMEOUT_S
    while os.getppid() != supervisor_pid and time.monotonic() < deadline_s:
        time.sleep(_ADOPTION_POLL_S)


def _num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _has_gpu_open() -> bool:
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(entry).startswith("/dev/nvidia"):
                return True
        except OSError:
            continue  # the listing's own descriptor
    return False


if __name__ == "__main__":
    sys.exit(main())
