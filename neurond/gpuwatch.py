"""What the NVML child reports: memory of each GPU, how much of it is not ours, Xids.

Supervisor. NVML may block for ever; then readings stop coming, the child is killed and
a new one asks. One that ignores even SIGKILL is written off and never waited for; there
are never more of those than GPUs (S38). The last readings stay.

    silent for 10 s, at first 30 ─▶ SIGKILL ─▶ gone: the next child
                                 └▶ still there 2 s later: written off ─▶ the next

Invariant: nothing here waits for NVML, and no stream notices its silence.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from ipc.child import Child, Exit, Reaper
from ipc.keeper import Keeper
from ipc.packet import PacketClosed, PacketTruncated, receive_packet
from neurond.xids import Sighting

SILENCE_S = 10.0
_KILL_S = 2.0
_FIRST_ANSWER = 3.0

Readings = Mapping[str, Mapping[str, Any]]
Hear = Callable[[Readings, list[tuple[str, Sighting]]], None]


class GpuWatch:
    """`hear` gets each report: readings and sightings, both by uuid."""

    def __init__(  # noqa: PLR0913  its collaborators
        self,
        reaper: Reaper,
        launch: Callable[[socket.socket], Child],
        our_pids: Callable[[], set[int]],
        on_exit: Callable[[Keeper, Exit | OSError], None],
        *,
        hear: Hear = lambda _readings, _sightings: None,
        most_written_off: int = 1,
        silence_s: float = SILENCE_S,
        kill_s: float = _KILL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reaper = reaper
        self._launch = launch
        self._our_pids = our_pids
        self._on_exit = on_exit
        self._hear = hear
        self._most_written_off = most_written_off
        self._silence_s = silence_s
        self._kill_s = kill_s
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._line: socket.socket | None = None
        self._child: Child | None = None
        self._readings: Readings = {}
        self._heard_s: float | None = None
        self._asked_s = 0.0
        self._killed_s: float | None = None
        self._written_off: set[Keeper] = set()
        self.keeper = self._new_keeper()

    def start(self) -> None:
        self._heard_s = self._asked_s = self._clock()
        self.keeper.start()

    def tick(self) -> None:
        """Once per tick of the supervisor."""
        if self._heard_s is None or self.keeper.state != "running":
            return
        now_s = self._clock()
        if self._killed_s is not None:
            if now_s - self._killed_s > self._kill_s:
                self._write_off()
        elif now_s - max(self._heard_s, self._asked_s) > self._patience_s():
            self._kill(now_s)

    @property
    def silent_s(self) -> float:
        """For how long nothing was heard, once that is too long; else 0."""
        if self._heard_s is None:
            return 0.0
        silence_s = self._clock() - self._heard_s
        return silence_s if silence_s > self._silence_s else 0.0

    @property
    def num_written_off(self) -> int:
        return len(self._written_off)

    def reading(self, uuid: str) -> Mapping[str, Any]:
        """The last one of a GPU; empty: none yet."""
        return self._readings.get(uuid, {})

    def foreign_bytes(self) -> dict[str, int]:
        """Per uuid, memory held by processes that are not ours."""
        ours = self._our_pids()
        return {uuid: _foreign(row, ours) for uuid, row in self._readings.items()}

    def close(self) -> None:
        if self._line is not None:
            self._loop.remove_reader(self._line)
            self._line.close()
            self._line = None

    # ---- the child

    def _patience_s(self) -> float:
        """Drivers that nobody used take long to answer for the first time."""
        assert self._heard_s is not None
        has_spoken = self._heard_s > self._asked_s
        return self._silence_s if has_spoken else _FIRST_ANSWER * self._silence_s

    def _new_keeper(self) -> Keeper:
        return Keeper("nvml", self._spawn, self._reaper, self._exited)

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
        self._child = child
        self._asked_s, self._killed_s = self._clock(), None
        self._loop.add_reader(ours, self._read)
        return child

    def _kill(self, now_s: float) -> None:
        assert self._child is not None  # its keeper runs it
        self._killed_s = now_s
        self._child.kill()

    def _write_off(self) -> None:
        """It may end some day; the next one is asked meanwhile, if there may be one."""
        if len(self._written_off) >= self._most_written_off:
            return
        self._written_off.add(self.keeper)
        self.keeper.stop()
        self.keeper = self._new_keeper()
        self.keeper.start()

    def _exited(self, keeper: Keeper, how: Exit | OSError) -> None:
        self._written_off.discard(keeper)
        self._on_exit(keeper, how)

    def _read(self) -> None:
        assert self._line is not None
        try:
            received = receive_packet(self._line)
        except (PacketClosed, PacketTruncated):
            self.close()
            return
        if received is None:
            return
        told = msgpack.unpackb(received[0])
        self._readings, self._heard_s = told["gpus"], self._clock()
        self._hear(self._readings, [self._sighting(*seen) for seen in told["xids"]])

    def _sighting(self, uuid: str, xid: int, pid: int | None) -> tuple[str, Sighting]:
        row = self._readings.get(uuid, {})
        ours = self._our_pids()
        others = any(held not in ours for held, _ in row.get("processes") or ())
        return uuid, Sighting(xid, pid, row.get("recovery_action"), others)


def _foreign(row: Mapping[str, Any], ours: set[int]) -> int:
    held = row.get("processes") or ()
    return sum(size or 0 for pid, size in held if pid not in ours)
