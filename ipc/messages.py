"""What travels on rings and on device links: one frozen dataclass per message kind.

Used by every process of a node. On the wire a message is a msgpack list
`[kind, field, field, …]` in the order of the class's fields (`codec`). Positions are
the protocol: append fields with defaults at the end, never reorder.

Ring, down (front end → device): Submit, Cancel
Ring, up   (device → front end): Accepted, Progress, Tokens, Finished, Failed,
                                  SlabsFree, PromptScores, Vector
Link, down (supervisor → device): Attach (+ fds), Detach, Load, Unload, Stop, Convert,
                                  Inject
Link, up   (device → supervisor): Hello, LoadProgress, Loaded, LoadFailed, Unloaded,
                                  Fault, Converted

Invariant: `decode(encode(m)) == m`; anything else raises MessageError.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

from ipc.codec import MAX_MESSAGE_BYTES as MAX_MESSAGE_BYTES
from ipc.codec import Codec
from ipc.codec import MessageError as MessageError
from ipc.ringmessages import Accepted as Accepted
from ipc.ringmessages import Cancel as Cancel
from ipc.ringmessages import Failed as Failed
from ipc.ringmessages import Finished as Finished
from ipc.ringmessages import Progress as Progress
from ipc.ringmessages import PromptScores as PromptScores
from ipc.ringmessages import RingDown as RingDown
from ipc.ringmessages import RingUp as RingUp
from ipc.ringmessages import Sampling as Sampling
from ipc.ringmessages import SlabsFree as SlabsFree
from ipc.ringmessages import Submit as Submit
from ipc.ringmessages import TokenRow as TokenRow
from ipc.ringmessages import Tokens as Tokens
from ipc.ringmessages import TopScores as TopScores
from ipc.ringmessages import Vector as Vector


@dataclass(frozen=True, slots=True)
class Attach:
    """A worker's ring pair; the five fds of `channel.PairFds` ride along."""

    kind: ClassVar[int] = 32
    worker: int
    generation: int
    sealed: bool


@dataclass(frozen=True, slots=True)
class Detach:
    """The worker is gone: drop its requests."""

    kind: ClassVar[int] = 33
    worker: int


@dataclass(frozen=True, slots=True)
class Load:
    """`folder` holds config.json, tokenizer and safetensors; `context` 0 = its own.

    `known`: what the same load found out in an earlier life (`Loaded.info`), empty: all
    is to be tried out; `alone`: the device serves nobody until it is done.
    """

    kind: ClassVar[int] = 34
    model: str
    folder: str
    dtype: str
    quant: str
    context: int
    options: dict[str, Any]
    known: dict[str, Any] = field(default_factory=dict)
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Unload:
    kind: ClassVar[int] = 35
    model: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Finish the step, fail what is left with shutting_down, exit 0."""

    kind: ClassVar[int] = 36


@dataclass(frozen=True, slots=True)
class Convert:
    """For a conversion job: GGUF file `source` → model folder `target`.

    Blocks that no kernel computes from are refused unless they `may_dequantise`.
    """

    kind: ClassVar[int] = 37
    source: str
    target: str
    may_dequantise: bool = False


@dataclass(frozen=True, slots=True)
class Inject:
    """Simulate a fault (`[faults] injection`), `times` times; 0 takes it back.

    From the `at_step`-th step from now on, counted from 1, 0 = at once; `request`: only
    in steps in which that id runs, 0 = any.
    """

    kind: ClassVar[int] = 38
    fault: str
    at_step: int = 1
    request: int = 0
    times: int = 1


@dataclass(frozen=True, slots=True)
class Hello:
    """The device has its context and takes orders."""

    kind: ClassVar[int] = 48
    pid: int
    generation: int
    backend: str
    memory_total_bytes: int
    memory_free_bytes: int


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """`done` of `total` units (bytes where there are any) of `stage`."""

    kind: ClassVar[int] = 49
    model: str
    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """`context` is the enforced window, `resident_bytes` what the weights really hold.

    `info`: architecture, dtype, quant, num_parameters, vocab_size, has_vision,
    context_limited_by, page_tokens, bytes_per_token; golden, the digest of what the
    model answered to a fixed prompt; known, for the next load of the same.
    """

    kind: ClassVar[int] = 50
    model: str
    context: int
    resident_bytes: int
    seconds: float
    info: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LoadFailed:
    kind: ClassVar[int] = 51
    model: str
    error: list[Any]


@dataclass(frozen=True, slots=True)
class Unloaded:
    kind: ClassVar[int] = 52
    model: str
    memory_free_bytes: int


@dataclass(frozen=True, slots=True)
class Fault:
    """Last words before `_exit(111)`: what the device knows of its own death.

    `fault_class` is a class of `neurond.faults`; `requests` are the ids of the step in
    flight.
    """

    kind: ClassVar[int] = 53
    fault_class: str
    type: str
    code: int
    chain: tuple[str, ...]
    model: str
    generation: int
    requests: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Converted:
    """A conversion job is done."""

    kind: ClassVar[int] = 54
    target: str
    size_bytes: int


LinkDown = Attach | Detach | Load | Unload | Stop | Convert | Inject
LinkUp = Hello | LoadProgress | Loaded | LoadFailed | Unloaded | Fault | Converted
Message = RingDown | RingUp | LinkDown | LinkUp

_GROUPS = (RingDown, RingUp, LinkDown, LinkUp)
_CODEC = Codec(cls for group in _GROUPS for cls in get_args(group))


def encode(message: Message) -> bytes:
    """The message as one msgpack list."""
    return _CODEC.encode(message)


def decode(record: bytes | memoryview) -> Message:
    """Inverse of `encode`. Raises MessageError."""
    message: Message = _CODEC.decode(record)
    return message
