"""What travels on rings and on device links: one frozen dataclass per message kind.

Used by every process of a node. On the wire a message is a msgpack list
`[kind, field, field, …]` in the order of the class's fields, tuples as lists, ext types
refused. Positions are the protocol: append fields at the end, never reorder.

Ring, down (front end → device): Submit, Cancel
Ring, up   (device → front end): Accepted, Progress, Tokens, Finished, Failed, SlabsFree
Link, down (supervisor → device): Attach (+ fds), Detach, Load, Unload, Stop
Link, up   (device → supervisor): Hello, LoadProgress, Loaded, LoadFailed, Unloaded,
                                  Fault

Invariant: `decode(encode(m)) == m`; anything else raises MessageError, never a builtin
error, so that a peer's nonsense can't be mistaken for a bug of ours.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import msgpack

MAX_MESSAGE_BYTES = 16 << 20
"""A record above this is refused on both sides."""


class MessageError(Exception):
    """The bytes are no message of ours."""


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
    """Admitted; `position` in the queue (0 = running), `cached` prompt tokens reused."""

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
    """A worker's ring pair; fds ride along: down ring, up ring, down bell, up bell."""

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
    """Make a model resident.

    `folder` holds config.json, tokenizer and safetensors. `context` is the window to
    serve; 0 = the model's own.
    """

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

_KINDS: dict[int, type[Any]] = {
    cls.kind: cls
    for group in (RingDown, RingUp, LinkDown, LinkUp)
    for cls in get_args(group)
}
_SCALARS: dict[Any, tuple[type, ...]] = {
    int: (int,),
    float: (float, int),
    str: (str,),
    bool: (bool,),
}


def encode(message: Message) -> bytes:
    """The message as one msgpack list."""
    packed: bytes = msgpack.packb([message.kind, *_values(message)])
    return packed


def decode(record: bytes | memoryview) -> Message:
    """Inverse of `encode`. Raises MessageError."""
    wire = _unpack(record)
    cls = _KINDS.get(wire[0]) if isinstance(wire[0], int) else None
    if cls is None:
        raise MessageError(f"unknown kind {wire[0]!r}")
    message: Message = _build(cls, wire[1:])
    return message


def _unpack(record: bytes | memoryview) -> list[Any]:
    if len(record) > MAX_MESSAGE_BYTES:
        raise MessageError(f"{len(record)} bytes is over {MAX_MESSAGE_BYTES}")
    try:
        wire = msgpack.unpackb(record, ext_hook=_refuse_ext)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise MessageError("not msgpack") from error
    if not isinstance(wire, list) or not wire:
        raise MessageError("not a list with a kind")
    return wire


def _refuse_ext(code: int, _data: bytes) -> Any:
    raise ValueError(f"ext type {code}")


def _values(record: Any) -> list[Any]:
    return [_plain(getattr(record, name)) for name in _NAMES[type(record)]]


def _plain(value: Any) -> Any:
    if type(value) in _NAMES:
        return _values(value)
    if type(value) is tuple and value and type(value[0]) in _NAMES:
        return [_values(item) for item in value]
    return value


def _build(cls: type[Any], wire: list[Any]) -> Any:
    checks = _CHECKS[cls]
    if len(wire) > len(checks):
        wire = wire[: len(checks)]  # a newer peer may have appended fields
    try:
        return cls(*[check(value) for check, value in zip(checks, wire, strict=False)])
    except TypeError as error:
        raise MessageError(f"{cls.__name__}: {error}") from error


def _check_for(hint: Any) -> Any:
    """A function that takes a wire value to the field's type or raises MessageError."""
    if is_dataclass(hint):
        return lambda value: _build(hint, _as_list(value))  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        return _tuple_check(get_args(hint))
    if get_origin(hint) is list or hint is list:
        return _as_list
    if get_origin(hint) is dict or hint is dict:
        return lambda value: _scalar(value, (dict,))
    allowed = _SCALARS[hint]
    return lambda value: _scalar(value, allowed)


def _tuple_check(args: tuple[Any, ...]) -> Any:
    if args[-1] is not Ellipsis:
        checks = [_check_for(arg) for arg in args]
        return lambda value: _fixed(value, checks)
    if args[0] is int:
        return _ints  # token ids: the hot path
    item = _check_for(args[0])
    return lambda value: tuple([item(entry) for entry in _as_list(value)])


def _fixed(value: Any, checks: list[Any]) -> tuple[Any, ...]:
    entries = _as_list(value)
    if len(entries) != len(checks):
        raise MessageError(f"{len(entries)} entries, expected {len(checks)}")
    return tuple([check(e) for check, e in zip(checks, entries, strict=True)])


def _ints(value: Any) -> tuple[int, ...]:
    entries = _as_list(value)
    if not all(type(entry) is int for entry in entries):
        raise MessageError("expected integers")
    return tuple(entries)


def _as_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise MessageError(f"expected a list, got {type(value).__name__}")
    return value


def _scalar(value: Any, allowed: tuple[type, ...]) -> Any:
    if type(value) not in allowed:
        raise MessageError(f"expected {allowed[0].__name__}, got {value!r:.40}")
    return value


_RECORDS = (*_KINDS.values(), Sampling, TokenRow)
_NAMES: dict[type[Any], tuple[str, ...]] = {
    cls: tuple(f.name for f in fields(cls)) for cls in _RECORDS
}
_CHECKS: dict[type[Any], list[Any]] = {}
for _cls in _RECORDS:
    _hints = get_type_hints(_cls)
    _CHECKS[_cls] = [_check_for(_hints[name]) for name in _NAMES[_cls]]
