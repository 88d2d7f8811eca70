"""What the NVML child reports: memory of each GPU, and how much of it is not ours.

Supervisor. NVML may block for ever; then readings stop coming and nothing else happens
here (S38). The last ones stay.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from ipc.child import Child, Exit, Reaper
from ipc.keeper import Keeper
from ipc.packet import PacketClosed, PacketTruncated, receive_packet


class GpuWatch:
    def __init__(
        self,
        reaper: Reaper,
        launch: Callable[[socket.socket], Child],
        our_pids: Callable[[], set[int]],
        on_exit: Callable[[Keeper, Exit | OSError], None],
    ) -> None:
        self._launch = launch
        self._our_pids = our_pids
        self._loop = asyncio.get_running_loop()
        self._line: socket.socket | None = None
        self._readings: Mapping[str, Mapping[str, Any]] = {}
        self.keeper = Keeper("nvml", self._spawn, reaper, on_exit)

    def start(self) -> None:
        self.keeper.start()

    def foreign_bytes(self) -> dict[str, int]:
        """Per uuid, memory held by processes that are not ours."""
        ours = self._our_pids()
        return {uuid: _foreign(row, ours) for uuid, row in self._readings.items()}

    def close(self) -> None:
        if self._line is not None:
            self._loop.remove_reader(self._line)
            self._line.close()
            self._line = None

    def _spawn(self) -> Child:
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            child = self._launch(theirs)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._line = ours
        self._loop.add_reader(ours, self._read)
        return child

    def _read(self) -> None:
        assert self._line is not None
        try:
            received = receive_packet(self._line)
        except (PacketClosed, PacketTruncated):
            self.close()
            return
        if received is not None:
            self._readings = msgpack.unpackb(received[0])


def _foreign(row: Mapping[str, Any], ours: set[int]) -> int:
    held = row.get("processes") or ()
    return sum(size or 0 for pid, size in held if pid not in ours)
