"""What the workers are still to be told: a ring each, and a backlog while it is full.

Device process, torch-free. Nobody blocks on a slow worker: messages wait here, in
order, up to a bound; past it the worker loses its requests, each with a Failed that
goes out when the ring has room again. A worker that breaks its ring, or lets a second
backlog grow, is dropped; the others never notice.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from ipc.channel import ChannelBroken, DeviceEnd
from ipc.errors import cause_chain, error_for
from ipc.journal import Journal
from ipc.messages import Failed, Finished, RingDown, RingUp
from ipc.pair import PairFds
from ipc.status import StatusWriter

MAX_BACKLOG = 4096


class Mailbox:
    """One worker's."""

    def __init__(self, end: DeviceEnd) -> None:
        self.end = end
        self.backlog: deque[RingUp] = deque()

    @property
    def overfull(self) -> bool:
        return len(self.backlog) > MAX_BACKLOG

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


class Mailboxes:
    """Owns every ring end of the device. `drop_requests` tells the engine."""

    def __init__(  # noqa: PLR0913  the process's collaborators
        self,
        journal: Journal,
        page: StatusWriter,
        poll: select.poll,
        drop_requests: Callable[[int], list[int]],
        *,
        end: Callable[..., DeviceEnd] = DeviceEnd,
    ) -> None:
        self._end = end
        self._journal = journal
        self._page = page
        self._poll = poll
        self._drop_requests = drop_requests
        self._boxes: dict[int, Mailbox] = {}

    def attach(self, worker: int, fds: list[int], *, generation: int) -> None:
        """Take the five descriptors of a pair. One that makes no sense is refused."""
        self.detach(worker)
        try:
            end = self._end(PairFds(*fds), generation=generation)
        except ChannelBroken as error:
            self._complain("ring pair refused", worker, error)
            return
        self._boxes[worker] = Mailbox(end)
        self._poll.register(end.bell.fileno(), select.POLLIN)

    def detach(self, worker: int) -> None:
        """The worker is gone: so are its requests."""
        self._drop_requests(worker)
        box = self._boxes.pop(worker, None)
        if box is not None:
            self._poll.unregister(box.end.bell.fileno())
            box.end.close()

    def receive(self) -> Iterator[tuple[int, RingDown]]:
        """What the workers sent, a bounded batch of each."""
        for worker, box in list(self._boxes.items()):
            try:
                messages = box.end.receive()
            except ChannelBroken as error:
                self._break(worker, error)
                continue
            for message in messages:
                yield worker, message

    def put(self, worker: int, message: RingUp) -> None:
        """Behind whatever waits; `flush` sends. Nothing for a worker that is gone."""
        box = self._boxes.get(worker)
        if box is not None:
            box.backlog.append(message)

    def flush(self) -> bool:
        """Send what fits. False: some worker's ring is full."""
        for worker, box in list(self._boxes.items()):
            try:
                box.flush()
            except ChannelBroken as error:
                self._break(worker, error)
                continue
            if box.overfull:
                self._abandon(worker, box)
        return not any(box.backlog for box in self._boxes.values())

    def park(self) -> bool:
        """True: no worker has sent anything, and a bell will ring when one does."""
        return all([box.end.park() for box in self._boxes.values()])

    def close(self) -> None:
        for worker in list(self._boxes):
            self.detach(worker)

    def _abandon(self, worker: int, box: Mailbox) -> None:
        """It reads too slowly, or not at all."""
        self._page.add("ring_full_total")
        self._journal.error("worker too slow: its requests dropped", worker=worker)
        box.abandon(self._drop_requests(worker))
        if box.overfull:  # a flood of refusals that nobody reads
            self.detach(worker)

    def _break(self, worker: int, error: ChannelBroken) -> None:
        self._complain("worker dropped: its ring is broken", worker, error)
        self.detach(worker)

    def _complain(self, text: str, worker: int, error: Exception) -> None:
        chain = " < ".join(cause_chain(error))
        self._journal.error(text, worker=worker, fault=chain)
