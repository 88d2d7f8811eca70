"""A ring pair with bells and slabs: how one worker and one device talk.

    worker  ── Submit, Cancel ──▶  down ring  ──▶  device     down bell wakes the device
    worker  ◀── Accepted, … ─────  up ring  ◀────  device     up bell wakes the worker

The supervisor makes the pair and gives the same five descriptors to both ends. The
device's end is for a loop of its own: it reads between steps without a system call and
parks before it polls. The worker's end lives in an asyncio loop.

A record over 64 KiB going down lies in slabs and only its envelope in the ring;
SlabsFree is answered and consumed here and never seen outside.

Invariant: whatever the peer does, an end answers with ChannelBroken and nothing else.
Records are copied out before they are decoded, so a peer can't change one meanwhile.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import get_args

from ipc.bell import Bell
from ipc.messages import MessageError, RingDown, RingUp, SlabsFree, decode, encode
from ipc.pair import PairFds as PairFds
from ipc.pair import create_pair as create_pair
from ipc.ring import Consumer, Producer, RingCorrupt, RingFull
from ipc.slabs import (
    SlabReader,
    SlabWriter,
    is_envelope,
    pack_envelope,
    unpack_envelope,
)

INLINE_BYTES = 64 << 10
_BATCH = 64
"""Records that a worker delivers before other tasks of its loop get their turn."""

_DOWN = frozenset(get_args(RingDown))
_UP = frozenset(get_args(RingUp))


class ChannelBroken(Exception):
    """The peer broke the protocol: drop that peer, nobody else."""


class DeviceEnd:
    """The device's end. Takes the descriptors, also when it refuses them."""

    def __init__(self, fds: PairFds, *, generation: int) -> None:
        try:
            self._down = Consumer(os.dup(fds.down_ring), generation=generation)
            self._up = Producer(os.dup(fds.up_ring), generation=generation)
            self._slabs = SlabReader(os.dup(fds.slabs))
            self.bell = Bell(os.dup(fds.down_bell))
            self._peer_bell = Bell(os.dup(fds.up_bell))
        except RingCorrupt as error:
            raise ChannelBroken(str(error)) from error
        finally:
            fds.close()
        self._parts = (self._down, self._up, self._slabs, self.bell, self._peer_bell)
        self._parked = False

    @property
    def used_bytes(self) -> int:
        """Bytes in the up ring that are not read yet. Raises ChannelBroken."""
        try:
            return self._up.used_bytes
        except RingCorrupt as error:
            raise ChannelBroken(str(error)) from error

    @property
    def full_events(self) -> int:
        return self._up.full_events

    def receive(self, limit: int = 64) -> list[RingDown]:
        """What the worker sent, up to `limit`. Raises ChannelBroken."""
        if self._parked:
            self._wake()
        messages: list[RingDown] = []
        try:
            while len(messages) < limit and (view := self._down.get()) is not None:
                record = bytes(view)
                self._down.advance()
                messages.append(self._decode(record))
            unreleased = self._slabs.unreleased
            if unreleased and self.send(SlabsFree(tuple(unreleased))):
                unreleased.clear()
        except (RingCorrupt, MessageError) as error:
            raise ChannelBroken(str(error)) from error
        return messages

    def send(self, message: RingUp) -> bool:
        """False: the ring is full, keep the message.

        Raises ChannelBroken; RecordTooLarge for a message over half of the ring.
        """
        try:
            if self._up.put(encode(message)):
                self._peer_bell.ring()
        except RingFull:
            return False
        except RingCorrupt as error:
            raise ChannelBroken(str(error)) from error
        return True

    def park(self) -> bool:
        """True: nothing to receive, and `bell` will ring when there is."""
        self._parked = self._down.park()
        return self._parked

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def _wake(self) -> None:
        self._parked = False
        self.bell.drain()
        self._down.unpark()

    def _decode(self, record: bytes) -> RingDown:
        if is_envelope(record):
            length, slabs = unpack_envelope(record)
            record = self._slabs.read(length, slabs)
        message = decode(record)
        if type(message) not in _DOWN:
            raise MessageError(f"{type(message).__name__} came down")
        return message  # type: ignore[return-value]


class WorkerEnd:
    """The worker's end, in an asyncio loop. Takes the descriptors."""

    def __init__(
        self,
        fds: PairFds,
        *,
        generation: int,
        on_message: Callable[[RingUp], None],
        on_broken: Callable[[Exception], None],
    ) -> None:
        try:
            self._down = Producer(os.dup(fds.down_ring), generation=generation)
            self._up = Consumer(os.dup(fds.up_ring), generation=generation)
            self._slabs = SlabWriter(os.dup(fds.slabs))
            self._bell = Bell(os.dup(fds.up_bell))
            self._peer_bell = Bell(os.dup(fds.down_bell))
        except RingCorrupt as error:
            raise ChannelBroken(str(error)) from error
        finally:
            fds.close()
        self._parts = (self._down, self._up, self._slabs, self._bell, self._peer_bell)
        self._on_message = on_message
        self._on_broken = on_broken
        self._inline_bytes = min(INLINE_BYTES, self._down.max_record_bytes)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turning = False
        self._open = True

    @property
    def num_free_slabs(self) -> int:
        return self._slabs.num_free

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver from now on, what waits already first."""
        self._loop = loop
        loop.add_reader(self._bell.fileno(), self._on_bell, loop)
        self._go_on(loop)

    def submit(self, message: RingDown) -> None:
        """Raises RingFull, RecordTooLarge; ChannelBroken once the end is closed."""
        if not self._open:
            raise ChannelBroken("the channel is closed")
        record = encode(message)
        try:
            large = len(record) > self._inline_bytes
            wake = self._put_large(record) if large else self._down.put(record)
        except RingCorrupt as error:
            broken = self._break(error)
            if self._loop is not None:
                # Not from here: the caller is in the middle of its own bookkeeping.
                self._loop.call_soon(self._on_broken, broken)
            raise broken from error
        if wake:
            self._peer_bell.ring()

    def drain(self) -> None:
        """Deliver everything that the device has published, now."""
        # As many as a full ring holds: no end is in sight with a peer that floods.
        self._deliver(self._up.capacity_bytes // 16)

    def close(self) -> None:
        """Deliver no more and unmap. Also right inside `on_message`."""
        if not self._open:
            return
        self._open = False
        if self._loop is not None:
            self._loop.remove_reader(self._bell.fileno())
        for part in self._parts:
            part.close()

    def _put_large(self, record: bytes) -> bool:
        slabs = self._slabs.write(record)
        try:
            return self._down.put(pack_envelope(len(record), slabs))
        except RingFull:
            self._slabs.free(slabs)
            raise

    def _on_bell(self, loop: asyncio.AbstractEventLoop) -> None:
        self._bell.drain()
        if not self._turning:
            self._turn(loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver a batch; go on in the loop's next round unless all is read."""
        self._turning = asleep = False
        try:
            asleep = self._deliver(_BATCH) and self._open and self._up.park()
        finally:
            # Also when a callback raised: the loop reports it, the rest still arrives.
            if not asleep and self._open:
                self._go_on(loop)

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        self._turning = True
        loop.call_soon(self._turn, loop)

    def _deliver(self, limit: int) -> bool:
        """Hand out up to `limit` messages. True: none is left."""
        for _ in range(limit):
            if not self._open:
                return True
            try:
                message = self._next()
            except (RingCorrupt, MessageError) as error:
                self._on_broken(self._break(error))
                return True
            if message is None:
                return True
            if type(message) is not SlabsFree:
                self._on_message(message)
        return False

    def _next(self) -> RingUp | None:
        view = self._up.get()
        if view is None:
            return None
        record = bytes(view)
        self._up.advance()
        message = decode(record)
        if type(message) is SlabsFree:
            self._slabs.free(message.slabs)
        elif type(message) not in _UP:
            raise MessageError(f"{type(message).__name__} came up")
        return message  # type: ignore[return-value]

    def _break(self, error: Exception) -> ChannelBroken:
        """Close first, so that nothing more is read, whatever the owner does."""
        self.close()
        broken = ChannelBroken(str(error))
        broken.__cause__ = error
        return broken
