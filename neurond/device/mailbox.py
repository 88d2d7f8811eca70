"""What one worker is still to be told: its ring, and a backlog while that is full.

Device process, torch-free. Nobody blocks on a slow worker: messages wait here, in
order, up to a bound; past it the worker loses its requests, each with a Failed that
goes out when the ring has room again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ipc.channel import DeviceEnd
from ipc.errors import error_for
from ipc.messages import Failed, Finished, RingUp

MAX_BACKLOG = 4096


class Mailbox:
    def __init__(self, end: DeviceEnd) -> None:
        self.end = end
        self.backlog: deque[RingUp] = deque()

    @property
    def overfull(self) -> bool:
        return len(self.backlog) > MAX_BACKLOG

    def put(self, message: RingUp) -> None:
        """Queue behind whatever waits; `flush` sends."""
        self.backlog.append(message)

    def flush(self) -> None:
        """Send until the ring is full. Raises ChannelBroken."""
        while self.backlog and self.end.send(self.backlog[0]):
            self.backlog.popleft()

    def abandon(self, requests: Iterable[int]) -> None:
        """Forget what waits and say instead that these, and those it ended, failed."""
        lost = {m.id: None for m in self.backlog if isinstance(m, Finished)}
        lost.update(dict.fromkeys(requests))
        told = [m for m in self.backlog if isinstance(m, Failed)]
        wire = error_for("overloaded", "the answer was not read in time").to_wire()
        self.backlog = deque([*told, *(Failed(request, wire) for request in lost)])
