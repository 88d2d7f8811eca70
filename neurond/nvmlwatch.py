"""The watch of the NVML child: readings and Xids, sent until the supervisor closes.

NVML child. Xids come from NVML's events and, where we may read it, from the kernel's
log, which alone knows the process. A reading that finds no room is dropped, an Xid is
kept until it could be sent.

Invariant: nothing here answers for a GPU that doesn't: what blocks, blocks, and is
noticed as silence.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, NoReturn

import msgpack

from ipc.child import EXIT_OK, EXIT_TEMPORARY
from ipc.packet import PacketClosed, receive_packet, send_packet
from neurond.discovery import Gpu
from neurond.nvml import Nvml, NvmlError, opened
from neurond.xids import bus_of, kernel_line

_MOST_XIDS = 64
_READ_BYTES = 1 << 13

Told = tuple[str, int, int | None]
"""Uuid, Xid, process."""


class KernelLog:
    """Lines from now on; nothing where the log can't be read."""

    def __init__(self, path: Path) -> None:
        self._rest = b""
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._close()

    def lines(self) -> list[str]:
        found: list[str] = []
        while chunk := self._read():
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            found += [line.decode(errors="replace") for line in whole]
        return found

    def _read(self) -> bytes:
        """A record of the device, or a piece of a file; empty: nothing now."""
        while self._fd >= 0:
            try:
                return os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return b""
            except BrokenPipeError:
                continue  # the kernel overwrote what we hadn't read
            except OSError:
                self._close()
        return b""

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class XidFeed:
    """What came since the last call, by the uuid of each device on that GPU."""

    def __init__(self, nvml: Nvml, gpus: list[Gpu], log: KernelLog) -> None:
        self._nvml = nvml
        self._log = log
        self._events = nvml.register_events()
        self._uuids: dict[str, list[str]] = {}
        for gpu in gpus:
            self._uuids.setdefault(bus_of(gpu.pci), []).append(gpu.uuid)

    def wait(self, timeout_s: float) -> list[Told]:
        found = self._of_nvml(timeout_s)
        for line in self._log.lines():
            seen = kernel_line(line)
            if seen is not None:
                bus, sighting = seen
                found += self._told(bus, sighting.xid, sighting.pid)
        return found

    def _of_nvml(self, timeout_s: float) -> list[Told]:
        if self._events is None:
            time.sleep(timeout_s)
            return []
        found: list[Told] = []
        timeout_ms = max(1, round(timeout_s * 1000))
        try:
            while len(found) < _MOST_XIDS:
                event = self._nvml.event(self._events, timeout_ms)
                if event is None:
                    break
                pci, xid = event
                found += self._told(bus_of(pci), xid, None)
                timeout_ms = 0
        except NvmlError:  # a GPU is lost; its reading says so
            time.sleep(timeout_s)
        return found

    def _told(self, bus: str, xid: int, pid: int | None) -> list[Told]:
        return [(uuid, xid, pid) for uuid in self._uuids.get(bus, ())]


def run(fd: int, interval_s: float, kernel_log: Path) -> int:
    """Until the supervisor closes; the exit code."""
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    log = KernelLog(kernel_log)
    try:
        with opened() as nvml:
            _feed(sock, nvml, log, interval_s)
    except PacketClosed:
        return EXIT_OK
    except NvmlError as error:
        print(f"nvml: {error}", file=sys.stderr)
        return EXIT_TEMPORARY


def _feed(
    sock: socket.socket, nvml: Nvml, log: KernelLog, interval_s: float
) -> NoReturn:
    """Raises PacketClosed, NvmlError."""
    gpus = nvml.gpus()
    feed = XidFeed(nvml, [gpu for gpu, _ in gpus], log)
    waiting: deque[Told] = deque(maxlen=_MOST_XIDS)
    while True:
        _check_open(sock)
        _send(sock, nvml, gpus, waiting)
        waiting += feed.wait(interval_s)


def _send(
    sock: socket.socket, nvml: Nvml, gpus: list[tuple[Gpu, Any]], waiting: deque[Told]
) -> None:
    """Raises PacketClosed."""
    readings = {gpu.uuid: nvml.reading(handle) for gpu, handle in gpus}
    if send_packet(sock, msgpack.packb({"gpus": readings, "xids": list(waiting)})):
        waiting.clear()


def _check_open(sock: socket.socket) -> None:
    """Raises PacketClosed when the other end is gone."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if poll.poll(0):
        receive_packet(sock)
