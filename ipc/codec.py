"""Dataclasses on the wire: msgpack lists in the order of the class's fields.

Used by `messages`. A message is `[kind, field, field, …]`; a dataclass inside one is a
list of its fields; tuples are lists; ext types are refused. Fields with defaults may be
absent at the end, and what a newer peer appended there is cut off.

    wire value      field's type
    int             int, float
    float           float
    str, bool, bin  the same
    list            tuple[T, ...], tuple[T, U] of scalars, a dataclass, list[Any]
    map             dict[str, Any]

Speed: the types of a record's fields together are its shape. A shape is checked once
and remembered, so that a usual record costs one look into a dict.

Invariant: `decode(encode(m)) == m`; any other bytes raise MessageError, never a builtin
error, so that a peer's nonsense can't be mistaken for a bug of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

import msgpack

MAX_MESSAGE_BYTES = 16 << 20
"""A record above this is not decoded."""

_Convert = Callable[[Any], Any]
_Nested = list[tuple[int, _Convert]]

_SCALARS: dict[Any, frozenset[type]] = {
    int: frozenset({int}),
    float: frozenset({float, int}),
    str: frozenset({str}),
    bool: frozenset({bool}),
    bytes: frozenset({bytes}),
}
_LIST = frozenset({list})
_MAP = frozenset({dict})
_DATA = frozenset({type(None), bool, int, float, str, list, dict})


class MessageError(Exception):
    """The bytes are no message of ours."""


class Codec:
    """Encodes and decodes the classes it is given; each has a `kind` of its own."""

    def __init__(self, classes: Iterable[type[Any]]) -> None:
        self._layouts: dict[type[Any], _Layout] = {}
        self._kinds = {cls.kind: self._layout(cls) for cls in classes}

    def encode(self, message: Any) -> bytes:
        """The message as one msgpack list."""
        wire = [message.kind, *self._values(message)]
        record: bytes = msgpack.packb(wire, default=self._values)
        return record

    def decode(self, record: bytes | memoryview) -> Any:
        """Inverse of `encode`. Raises MessageError."""
        wire = _unpack(record)
        kind = wire.pop(0)
        layout = self._kinds.get(kind) if type(kind) is int else None
        if layout is None:
            raise MessageError(f"unknown kind {kind!r:.40}")
        return layout.build(wire)

    def _values(self, record: Any) -> list[Any]:
        return [getattr(record, name) for name in self._layouts[type(record)].names]

    def _layout(self, cls: type[Any]) -> _Layout:
        if cls not in self._layouts:
            hints = get_type_hints(cls)
            rules = [self._rule(hints[field.name]) for field in fields(cls)]
            self._layouts[cls] = _Layout(cls, rules)
        return self._layouts[cls]

    def _rule(self, hint: Any) -> tuple[frozenset[type], _Convert | None]:
        """The wire types of a field, and how to take such a value to the field's."""
        if hint in _SCALARS:
            return _SCALARS[hint], None
        if is_dataclass(hint):
            return _LIST, self._layout(hint).build  # type: ignore[arg-type]
        if get_origin(hint) is tuple:
            return _LIST, self._tuple_rule(get_args(hint))
        return (_MAP if get_origin(hint) is dict else _LIST), _plain_data

    def _tuple_rule(self, items: tuple[Any, ...]) -> _Convert:
        if items[-1] is not Ellipsis:
            return _fixed([_SCALARS[item] for item in items])
        allowed, convert = self._rule(items[0])
        if convert is None:
            return _scalars(allowed)
        return _repeated(allowed, convert)


class _Layout:
    """One class: its fields and the shapes of record that were found right."""

    def __init__(
        self,
        cls: type[Any],
        rules: list[tuple[frozenset[type], _Convert | None]],
    ) -> None:
        self.names = [field.name for field in fields(cls)]
        self._cls = cls
        self._allowed = [allowed for allowed, _ in rules]
        self._nested = [(i, convert) for i, (_, convert) in enumerate(rules) if convert]
        self._num_required = sum(
            field.default is field.default_factory is MISSING for field in fields(cls)
        )
        self._shapes: dict[tuple[type, ...], _Nested] = {}

    def build(self, wire: list[Any]) -> Any:
        """The object of these fields; uses up the list. Raises MessageError."""
        if len(wire) > len(self._allowed):
            del wire[len(self._allowed) :]  # a newer peer may have appended fields
        shape = tuple(map(type, wire))
        nested = self._shapes.get(shape)
        if nested is None:
            nested = self._learn(shape)
        for index, convert in nested:
            wire[index] = convert(wire[index])
        return self._cls(*wire)

    def _learn(self, shape: tuple[type, ...]) -> _Nested:
        """The fields to convert in a record of this shape. Raises MessageError."""
        name = self._cls.__name__
        if len(shape) < self._num_required:
            raise MessageError(f"{name}: {len(shape)} fields of {self._num_required}")
        for field, actual, allowed in zip(
            self.names, shape, self._allowed, strict=False
        ):
            if actual not in allowed:
                raise MessageError(f"{name}.{field} is {actual.__name__}")
        nested = [(i, convert) for i, convert in self._nested if i < len(shape)]
        self._shapes[shape] = nested
        return nested


def _unpack(record: bytes | memoryview) -> list[Any]:
    if len(record) > MAX_MESSAGE_BYTES:
        raise MessageError(f"{len(record)} bytes is over {MAX_MESSAGE_BYTES}")
    try:
        wire = msgpack.unpackb(record, ext_hook=_refuse_ext)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise MessageError("not msgpack") from error
    if type(wire) is not list or not wire:
        raise MessageError("not a list with a kind")
    return wire


def _refuse_ext(code: int, _data: bytes) -> Any:
    raise ValueError(f"ext type {code}")


def _scalars(allowed: frozenset[type]) -> _Convert:
    def convert(wire: list[Any]) -> tuple[Any, ...]:
        if wire and not allowed.issuperset(map(type, wire)):
            raise MessageError(f"a list of {set(map(type, wire))}")
        return tuple(wire)

    return convert


def _repeated(allowed: frozenset[type], item: _Convert) -> _Convert:
    scalars = _scalars(allowed)

    def convert(wire: list[Any]) -> tuple[Any, ...]:
        return tuple([item(entry) for entry in scalars(wire)])

    return convert


def _fixed(allowed: list[frozenset[type]]) -> _Convert:
    def convert(wire: list[Any]) -> tuple[Any, ...]:
        if len(wire) != len(allowed):
            raise MessageError(f"{len(wire)} entries, expected {len(allowed)}")
        for entry, types in zip(wire, allowed, strict=True):
            if type(entry) not in types:
                raise MessageError(f"an entry is {type(entry).__name__}")
        return tuple(wire)

    return convert


def _plain_data(wire: Any) -> Any:
    """A list or map of anything that JSON could hold: no timestamps, keys are text."""
    todo = [wire]
    while todo:
        value = todo.pop()
        if type(value) not in _DATA:
            raise MessageError(f"{type(value).__name__} inside a message")
        if type(value) is list:
            todo += value
        elif type(value) is dict:
            if not all(type(key) is str for key in value):
                raise MessageError("a key is not text")
            todo += value.values()
    return wire
