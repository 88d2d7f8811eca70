"""The entries in flight by their ids, and the steps that they take.

Front-end worker; a part of the request table.

Invariant: an entry takes the steps of `entries.NEXT` and no other. It is here until it
ends, which it does once, and nothing is told about it afterwards.
"""

from __future__ import annotations

from collections import Counter

from ipc.channel import ChannelBroken
from ipc.errors import ServiceError, error_for
from ipc.messages import Cancel
from ipc.ring import RingFull
from neurond.serving.entries import NEXT, Channel, Entry, State

_NEWS = ("progress", "scores", "tokens", "vector")


class Register:
    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._per_device: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> list[Entry]:
        """All of them now, the oldest first."""
        return list(self._entries.values())

    def on(self, device: str) -> int:
        """How many."""
        return self._per_device[device]

    def find(self, channel: Channel, request: int) -> Entry | None:
        """Its entry, unless that belongs to another life of a device by now."""
        entry = self._entries.get(request)
        return entry if entry is not None and entry.channel is channel else None

    def add(self, entry: Entry) -> None:
        self._entries[entry.submit.id] = entry
        self._per_device[entry.device] += 1

    def move(self, entry: Entry, device: str) -> None:
        """It belongs to that device now, and to none of its lives yet."""
        self._per_device[entry.device] -= 1
        self._per_device[device] += 1
        entry.device, entry.generation = device, 0

    def step(self, entry: Entry, event: str) -> bool:
        """False when it has ended or the table has no such step."""
        if entry.state is State.ENDED:
            return False
        state = NEXT.get((entry.state, event))
        if state is None:
            self.break_off(entry, f"{event} while {entry.state.value}")
            return False
        entry.state = state
        if event in _NEWS:
            entry.num_breaks = 0
        if state is State.ENDED:
            del self._entries[entry.submit.id]
            self._per_device[entry.device] -= 1
        return True

    def fail(self, entry: Entry, event: str, error: ServiceError) -> bool:
        """False when it has ended already."""
        stepped = self.step(entry, event)
        if stepped:
            entry.sink.on_failed(error)
        return stepped

    def break_off(self, entry: Entry, reason: str) -> None:
        """The device breaks the protocol for this entry: it is lost, others are not."""
        error = error_for(
            "internal_error",
            "the request was lost between front end and device",
            chain=(f"ProtocolViolation: request {entry.submit.id}: {reason}",),
        )
        send_cancel(entry.channel, entry.submit.id)
        self.fail(entry, "failed", error)


def send_cancel(channel: Channel | None, request: int) -> None:
    """As far as that is possible: a parked entry runs nowhere."""
    try:
        if channel is not None:
            channel.submit(Cancel(request))
    except (RingFull, ChannelBroken):
        pass  # its next tokens ask again; a broken channel has no requests
