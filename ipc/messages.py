"""What travels on rings and on device links: one frozen dataclass per message kind.

Used by every process of a node. On the wire a message is a msgpack list
`[kind, field, field, …]` in the order of the class's fields (`codec`). Positions are
the protocol: append fields with defaults at the end, never reorder.

Ring, down (front end → device): Submit, Cancel
Ring, up   (device → front end): Accepted, Progress, Tokens, Finished, Failed, SlabsFree
Link, down (supervisor → device): Attach (+ fds), Detach, Load, Unload, Stop, Convert
Link, up   (device → supervisor): Hello, LoadProgress, Loaded, LoadFailed, Unloaded,
                                  Fault, Converted

Invariant: `decode(encode(m)) == m`; anything else raises MessageError.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from ipc.codec import MAX_MESSAGE_BYTES as MAX_MESSAGE_BYTES
from ipc.codec import Codec
from ipc.codec import MessageError as MessageError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn from the logits; all fields resolved, none absent."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int = -1


@dataclass(frozen=True, slots=True)
class Submit:
    """Run one sequence. `ids[num_prompt:]` were emitted before (resume, D6).

    `max_tokens` counts emitted tokens in all, those of earlier attempts included.
    `deadline_s` is seconds from arrival; 0 = none. `slabs` name shared slabs with
    pixels.
    """

    kind: ClassVar[int] = 1
    id: int
    attempt: int
    model: str
    ids: tuple[int, ...]
    num_prompt: int
    choice: int
    seed: int
    sampling: Sampling
    max_tokens: int
    stop_ids: tuple[int, ...]
    grammar: str
    principal: str
    priority: int
    deadline_s: float
    cache_salt: str
    slabs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop working for this request; no answer follows."""

    kind: ClassVar[int] = 2
    id: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """Admitted; `position` in the queue (0 = running), `cached` prompt tokens."""

    kind: ClassVar[int] = 16
    id: int
    position: int
    cached: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Prefill: `done` of `total` prompt tokens."""

    kind: ClassVar[int] = 17
    id: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class TokenRow:
    """New ids of one sequence; `start` = number emitted before them."""

    id: int
    start: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """One decode step for one worker: a row per sequence of its own."""

    kind: ClassVar[int] = 18
    rows: tuple[TokenRow, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """`reason`: stop (a stop id or EOS) or length. Counts are tokens."""

    kind: ClassVar[int] = 19
    id: int
    reason: str
    num_prompt: int
    num_emitted: int
    num_cached: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended without an answer; `error` is `ServiceError.to_wire()`."""

    kind: ClassVar[int] = 20
    id: int
    error: list[Any]


@dataclass(frozen=True, slots=True)
class SlabsFree:
    """The device has read these slabs."""

    kind: ClassVar[int] = 21
    slabs: tuple[int, ...]


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
    """`folder` holds config.json, tokenizer and safetensors; `context` 0 = its own."""

    kind: ClassVar[int] = 34
    model: str
    folder: str
    dtype: str
    quant: str
    context: int
    options: dict[str, Any]


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
    """For a conversion job: GGUF file `source` → model folder `target`."""

    kind: ClassVar[int] = 37
    source: str
    target: str


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

    `info`: architecture, dtype, quant, num_parameters, vocab_size, has_vision.
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


RingDown = Submit | Cancel
RingUp = Accepted | Progress | Tokens | Finished | Failed | SlabsFree
LinkDown = Attach | Detach | Load | Unload | Stop | Convert
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
