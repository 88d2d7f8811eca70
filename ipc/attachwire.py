"""What is said on attach.sock: one SEQPACKET record, one msgpack list `[kind, …]`.

    worker → supervisor     Hello(protocol, build, role, name)     first and only
    supervisor → worker     Welcome(worker) | Refused(error)       the answer
                            Pair(device, generation, sealed) + 5 descriptors
                            Down(device, generation, reason, suspects, convicted)
    worker → supervisor     Quarantine(fingerprint, model)         any time after

Invariant: a change of any of these moves PROTOCOL; a supervisor refuses another number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ipc.codec import Codec

PROTOCOL = 2


@dataclass(frozen=True, slots=True)
class Hello:
    """`role`: "worker" of this node, "gateway" on this host, …; `name` for journals."""

    kind: ClassVar[int] = 1
    protocol: int
    build: str
    role: str
    name: str


@dataclass(frozen=True, slots=True)
class Welcome:
    """`worker` is the id that devices know this connection by."""

    kind: ClassVar[int] = 2
    worker: int


@dataclass(frozen=True, slots=True)
class Refused:
    """`error` is `ServiceError.to_wire()`; the connection is closed behind it."""

    kind: ClassVar[int] = 3
    error: list[Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """A device is up: its ring pair for this worker, the descriptors of a PairFds."""

    kind: ClassVar[int] = 4
    device: str
    generation: int
    sealed: bool


@dataclass(frozen=True, slots=True)
class Down:
    """This life of the device is over; never read its rings again.

    `suspects`: (request id, trial group), to be tried in steps of their own; the
    `convicted` are never submitted again. Ids of other workers are among them.
    """

    kind: ClassVar[int] = 5
    device: str
    generation: int
    reason: str
    suspects: tuple[tuple[int, int], ...] = ()
    convicted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A request of this worker was convicted; `fingerprint` names what it asked."""

    kind: ClassVar[int] = 6
    fingerprint: str
    model: str


ATTACH = Codec([Hello, Welcome, Refused, Pair, Down, Quarantine])
