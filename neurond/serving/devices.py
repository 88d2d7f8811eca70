"""The devices a worker is attached to: one open channel per live device.

Front-end worker (and the gateway's, for a local node). The supervisor sends a pair when
a device is ready and word when it is down; in between a channel may break.

Invariant: at most one channel per device, that of its newest generation; when it comes
or goes, the table hears of it at once, and nothing is read of one that is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from ipc.channel import ChannelBroken, PairFds, WorkerEnd
from ipc.errors import cause_chain
from ipc.journal import Journal
from ipc.messages import RingDown, RingUp
from neurond.serving.requests import RequestTable


class DeviceLine:
    """An open channel to one generation of a device; the table's `Channel`."""

    def __init__(self, device: str, generation: int) -> None:
        self.device = device
        self.generation = generation
        self.end: WorkerEnd | None = None

    def submit(self, message: RingDown) -> None:
        if self.end is None:
            raise ChannelBroken("the device is gone")
        self.end.submit(message)


class Devices:
    """`on_broken` is told when a channel broke: only a new attachment mends it."""

    def __init__(
        self,
        table: RequestTable,
        journal: Journal,
        on_broken: Callable[[], None],
        *,
        end: Callable[..., WorkerEnd] = WorkerEnd,
    ) -> None:
        self._end = end
        self._table = table
        self._journal = journal
        self._on_broken = on_broken
        self._lines: dict[str, DeviceLine] = {}

    def pick(self, devices: Iterable[str]) -> DeviceLine | None:
        """Of these devices the open one that does least for this worker."""
        open_lines = [self._lines[name] for name in devices if name in self._lines]
        return min(
            open_lines,
            key=lambda line: self._table.in_flight(line.device),
            default=None,
        )

    def on_pair(self, device: str, generation: int, fds: PairFds) -> None:
        self._drop(device)
        line = DeviceLine(device, generation)
        try:
            line.end = self._end(
                fds,
                generation=generation,
                on_message=lambda message: self._on_message(line, message),
                on_broken=lambda error: self._broken(line, error),
            )
        except ChannelBroken as error:
            self._broken(line, error)
            return
        self._lines[device] = line
        line.end.start(asyncio.get_running_loop())
        self._tell("requests go on", device, generation)
        self._table.on_up(device, line)

    def on_down(
        self,
        device: str,
        generation: int,
        _reason: str,
        suspects: tuple[tuple[int, int], ...] = (),
        convicted: tuple[int, ...] = (),
    ) -> None:
        line = self._lines.get(device)
        if line is not None and line.generation <= generation:
            self._close(line)
        self._table.on_down(device, generation, suspects, convicted)
        self._tell("requests wait for their device", device, generation)

    def on_lost(self) -> None:
        """The supervisor is gone, and with it the word on who lives."""
        for device in list(self._lines):
            self._drop(device)

    def _on_message(self, line: DeviceLine, message: RingUp) -> None:
        self._table.on_message(line.device, line, message)

    def _broken(self, line: DeviceLine, error: Exception) -> None:
        self._journal.error(
            "the channel to a device broke",
            device=line.device,
            generation=line.generation,
            cause=" <- ".join(cause_chain(error)),
        )
        if self._lines.get(line.device) is line:
            self._close(line)
            self._table.on_broken(line.device, line.generation)
        self._on_broken()

    def _drop(self, device: str) -> None:
        line = self._lines.get(device)
        if line is not None:
            self._close(line)
            self._table.on_down(device, line.generation)

    def _tell(self, text: str, device: str, generation: int) -> None:
        number = sum(entry.device == device for entry in self._table.parked)
        if number:
            self._journal.info(
                text, device=device, generation=generation, requests=number
            )

    def _close(self, line: DeviceLine) -> None:
        del self._lines[line.device]
        if line.end is not None:
            line.end.close()
            line.end = None
