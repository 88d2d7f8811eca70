"""The requests in flight of one worker: what was asked, what has been emitted.

Front-end worker (and the gateway's, for a local node). An entry (`entries`) belongs to
one life of a device at a time. When that ends it is parked and goes on in the next
one, or on another device; its sink doesn't hear of that.

Invariants: an entry ends exactly once, and nothing is told about it afterwards. Every
record continues exactly where the last one stopped, else the entry fails; what was told
before a death is not told again. Ids are never used twice in a worker's life, and are
kept over attempts. Deterministic: the clock is given, there is no loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from ipc.channel import ChannelBroken
from ipc.errors import ServiceError, error_for
from ipc.messages import RingUp, Submit
from ipc.ring import RecordTooLarge, RingFull
from neurond.retrying import ends_s, retry_after_s
from neurond.serving.entries import Channel, Entry, Sink, State
from neurond.serving.hearing import Hearing
from neurond.serving.register import Register, send_cancel

_MOST_BREAKS = 2
"""Channels that may break in a row under a request before it is given up."""


def _nothing(_submit: Submit) -> None:
    pass


class RequestTable:
    """`resume_deadline_s`: how long an entry waits for a device, 0.0 = it doesn't.

    `on_resumed` and `on_convicted` are told of each submission again, and of each
    request that is found to kill devices.
    """

    def __init__(  # noqa: PLR0913  its rules, the clock and two witnesses
        self,
        *,
        first_id: int,
        max_entries: int,
        resume_deadline_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
        on_resumed: Callable[[Submit], None] = _nothing,
        on_convicted: Callable[[Submit], None] = _nothing,
    ) -> None:
        self._next_id = first_id
        self._max_entries = max_entries
        self._resume_deadline_s = resume_deadline_s
        self._clock = clock
        self._on_resumed = on_resumed
        self._on_convicted = on_convicted
        self._register = Register()
        self._hearing = Hearing(self._register)
        self._channels: dict[str, Channel] = {}
        self._full: set[str] = set()

    def __len__(self) -> int:
        return len(self._register)

    def in_flight(self, device: str) -> int:
        return self._register.on(device)

    @property
    def parked(self) -> list[Entry]:
        """Those that wait for a device, the oldest first."""
        return [e for e in self._register.entries() if e.state is State.PARKED]

    def check_room(
        self, num_sequences: int = 1, token_s: float = 0.0, num_seats: int = 0
    ) -> None:
        """Raises CapacityError queue_full: before any work is done for a request.

        `token_s` is how long a token takes, 0.0 = unknown, `num_seats` how many of ours
        are served at once, 0 = all: they say when to ask again.
        """
        num_missing = len(self) + num_sequences - self._max_entries
        if num_missing > 0:
            served = sorted(self._register.entries(), key=lambda e: not e.emitted)
            lefts_s = [token_s * entry.num_left for entry in served]
            ends = ends_s(lefts_s, num_seats or len(lefts_s))
            raise error_for(
                "queue_full",
                "every queue place of this worker is taken",
                retry_after_s=retry_after_s(ends, num_missing),
            )

    def submit(
        self,
        device: str,
        channel: Channel,
        submit: Submit,
        sink: Sink,
        *,
        may_park: bool = False,
    ) -> Entry:
        """Send it; the id of `submit` is ours to choose.

        `may_park`: it belongs to a request that is under way, and waits with the rest
        of it when the device is gone. Raises ServiceError; then the sink hears nothing.
        """
        self.check_room()
        numbered = replace(submit, id=self._next_id)
        self._next_id += 1
        entry = Entry(numbered, device, channel.generation, sink, channel)
        try:
            _send(channel, numbered)
        except ServiceError as error:
            is_gone = error.code == "model_recovering"
            if not (may_park and is_gone and self._resume_deadline_s):
                raise
            self._register.add(entry)
            self._park(entry)
            self._resume(device)
        else:
            self._register.add(entry)
        return entry

    def cancel(self, entry: Entry) -> None:
        """Nothing more is told about it. Harmless once it has ended."""
        if self._register.step(entry, "cancel"):
            send_cancel(entry.channel, entry.submit.id)

    def on_message(self, device: str, channel: Channel, message: RingUp) -> None:
        self._hearing.on_message(channel, message)
        if device in self._full:
            self._resume(device)

    # -- lives of devices

    def on_down(
        self,
        device: str,
        generation: int,
        suspects: Iterable[tuple[int, int]] = (),
        convicted: Iterable[int] = (),
    ) -> None:
        """This life of the device is over; its requests wait for the next.

        `suspects` may have ended it: (id, the group to be tried in). The `convicted`
        did.
        """
        groups, guilty = dict(suspects), frozenset(convicted)
        for entry in self._of_life(device, generation):
            if entry.submit.id in guilty:
                self._convict(entry)
                continue
            if entry.submit.id in groups:
                entry.suspect(groups[entry.submit.id])
            self._park(entry)

    def on_broken(self, device: str, generation: int) -> None:
        """The channel to this life broke, whoever broke it."""
        for entry in self._of_life(device, generation):
            entry.num_breaks += 1
            if entry.num_breaks > _MOST_BREAKS:
                words = "the channel to the device breaks again and again"
                self._register.fail(entry, "lost", error_for("internal_error", words))
            self._park(entry)

    def on_up(self, device: str, channel: Channel) -> None:
        """A life of the device takes requests: it gets those that wait for it."""
        self._channels[device] = channel
        self._resume(device)

    def move(self, entry: Entry, device: str) -> None:
        """A parked one goes on at that device, its own or another."""
        if entry.state is State.PARKED:
            if device != entry.device:
                self._register.move(entry, device)
            self._resume(device)

    def give_up(self, entry: Entry, error: ServiceError) -> None:
        """No device will go on with it."""
        if entry.state is State.PARKED:
            self._register.fail(entry, "lost", error)

    def tick(self) -> None:
        """Try full rings again, and end those that waited for a device too long."""
        for device in list(self._full):
            self._resume(device)
        last_s = self._clock() - self._resume_deadline_s
        for entry in self.parked:
            if entry.parked_s <= last_s:
                words = "the device that served the request died and isn't back in time"
                self.give_up(entry, error_for("device_fault", words))

    def _of_life(self, device: str, generation: int) -> list[Entry]:
        """Its entries; nothing is sent to it any more."""
        channel = self._channels.get(device)
        if channel is not None and channel.generation <= generation:
            del self._channels[device]
            self._full.discard(device)
        life = (device, generation)
        entries = self._register.entries()
        return [e for e in entries if (e.device, e.generation) == life]

    def _convict(self, entry: Entry) -> None:
        words = "the request killed a device while it ran there alone"
        error = error_for("request_quarantined", words)
        if self._register.fail(entry, "convicted", error):
            self._on_convicted(entry.submit)

    def _park(self, entry: Entry) -> None:
        if not self._resume_deadline_s:
            code = "device_fault" if entry.cached is not None else "model_recovering"
            error = error_for(code, "the device that served the request died")
            self._register.fail(entry, "lost", error)
            return
        was_parked = entry.state is State.PARKED
        if self._register.step(entry, "down") and not was_parked:
            entry.channel = None
            entry.parked_s = self._clock()

    def _resume(self, device: str) -> None:
        """Submit again what waits for it, until its ring is full."""
        channel = self._channels.get(device)
        self._full.discard(device)
        for entry in self.parked:
            if channel is None:
                return
            if entry.device == device and not self._send_again(entry, channel):
                return

    def _send_again(self, entry: Entry, channel: Channel) -> bool:
        """False: nor can those behind it be sent now."""
        if entry.state is not State.PARKED:
            return True  # it was cancelled meanwhile
        submit = entry.again()
        try:
            _send(channel, submit)
        except ServiceError as error:
            if error.code == "request_too_large":
                return self._register.fail(entry, "failed", error)
            if error.code == "queue_full":
                self._full.add(entry.device)
            return False
        self._register.step(entry, "up")
        entry.resumed(submit, channel)
        self._on_resumed(submit)
        return True


def _send(channel: Channel, submit: Submit) -> None:
    try:
        channel.submit(submit)
    except RingFull as error:
        raise error_for("queue_full", "the device's request ring is full") from error
    except RecordTooLarge as error:
        raise error_for("request_too_large", "the prompt is too large") from error
    except ChannelBroken as error:
        raise error_for("model_recovering", "the device is coming back") from error
