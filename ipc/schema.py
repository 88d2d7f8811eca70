"""Checks plain values against a configuration class and builds it.

Used by ipc.settings only. Knows nothing of files or the environment: a function tells
it where each value came from, so that a message can name it.

Invariant: all problems of one pass are found, each names exactly one place.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Keys = tuple[str | int, ...]
Rules = Mapping[str, Any]


class ConfigError(Exception):
    """One mistake in the configuration; `str` is one line for the operator.

    `path` is None when the value came from the environment; `key` is then the variable.
    """

    def __init__(
        self,
        message: str,
        *,
        path: Path | None = None,
        line: int | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.line = line
        self.key = key

    def __str__(self) -> str:
        source = "environment" if self.path is None else str(self.path)
        numbered = source if self.line is None else f"{source}:{self.line}"
        return ": ".join([p for p in (numbered, self.key, self.message) if p])


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: a line of a file, or a variable of the environment."""

    path: Path | None = None
    line: int | None = None
    variable: str = ""


class _Invalid:
    """Stands for a value whose problem has been noted."""


_INVALID = _Invalid()
_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a table",
}


class Checker:
    """One pass over the plain values of one configuration; collects `problems`."""

    def __init__(self, root: type[Any], origin_of: Callable[[Keys], Origin]) -> None:
        self.problems: list[ConfigError] = []
        self._root = root
        self._origin_of = origin_of

    def record(self, cls: type[Any], raw: Any, keys: Keys = ()) -> Any:
        """An instance of `cls`; worth nothing once there are problems."""
        if not isinstance(raw, dict):
            return self._note(keys, f"must be a table, not {_shown(raw)}")
        before = len(self.problems)
        self._refuse_unknown(cls, raw, keys)
        values = dict(self._fields(cls, raw, keys))
        if len(self.problems) > before:
            return _INVALID
        try:
            return cls(**values)
        except ValueError as error:  # a check across fields in __post_init__
            return self._note(keys, str(error))

    def _fields(
        self, cls: type[Any], raw: dict[str, Any], keys: Keys
    ) -> Iterator[tuple[str, Any]]:
        hints = get_type_hints(cls)
        for field in fields(cls):
            place = (*keys, field.name)
            if field.name in raw:
                value = raw[field.name]
                yield (
                    field.name,
                    self._value(hints[field.name], value, place, field.metadata),
                )
            elif _required(field):
                self._note(place, "is required")

    def _value(self, hint: Any, raw: Any, keys: Keys, rules: Rules) -> Any:
        inner, optional = _without_none(hint)
        if optional and (raw is None or (inner is Path and raw == "")):
            return None
        if is_dataclass(inner):
            return self.record(inner, raw, keys)  # type: ignore[arg-type]
        origin = get_origin(inner) or inner
        if origin is tuple:
            return self._tuple(get_args(inner)[0], raw, keys, rules)
        if origin is dict:
            return raw if isinstance(raw, dict) else self._wrong(keys, dict, raw)
        if origin is Literal:
            return self._scalar(str, raw, keys, {"choices": get_args(inner)})
        return self._scalar(inner, raw, keys, rules)

    def _tuple(self, item: Any, raw: Any, keys: Keys, rules: Rules) -> Any:
        if not isinstance(raw, list):
            return self._wrong(keys, list, raw)
        return tuple(
            [self._value(item, entry, (*keys, i), rules) for i, entry in enumerate(raw)]
        )

    def _scalar(self, kind: Any, raw: Any, keys: Keys, rules: Rules) -> Any:
        if kind is Path:
            return self._path(raw, keys, rules)
        if kind is float and type(raw) is int:
            raw = float(raw)
        if type(raw) is not kind:
            return self._wrong(keys, kind, raw)
        complaint = _complaint(raw, rules)
        return self._note(keys, complaint, raw, rules) if complaint else raw

    def _path(self, raw: Any, keys: Keys, rules: Rules) -> Any:
        if not isinstance(raw, str):
            return self._wrong(keys, str, raw)
        if not raw or "\0" in raw:
            return self._note(keys, "must be a path")
        try:
            path = Path(raw).expanduser()
        except RuntimeError:
            return self._note(keys, "names a user who has no home")
        source = self._origin_of(keys).path
        if source is not None:
            path = source.absolute().parent / path
        wanted = rules.get("exists")
        if (wanted == "file" and not path.is_file()) or (
            wanted == "folder" and not path.is_dir()
        ):
            return self._note(keys, f"there is no {wanted} {path}")
        return path

    def _refuse_unknown(self, cls: type[Any], raw: dict[str, Any], keys: Keys) -> None:
        names = [field.name for field in fields(cls)]
        for name in raw:
            if name not in names:
                hint = nearest(name, names) or self._elsewhere(name)
                self._note((*keys, name), f"is not known{hint}", raw[name])

    def _elsewhere(self, name: str) -> str:
        """For a key that stands in the wrong section."""
        for keys in leaves(self._root):
            if keys[-1] == name and len(keys) > 1:
                return f" (did you mean '{name}' in [{keys[0]}]?)"
        return ""

    def _wrong(self, keys: Keys, kind: type, raw: Any) -> _Invalid:
        return self._note(keys, f"must be {_KINDS[kind]}, not {_shown(raw)}")

    def _note(
        self, keys: Keys, message: str, raw: Any = None, rules: Rules | None = None
    ) -> _Invalid:
        if rules and isinstance(raw, str) and "choices" in rules:
            message += nearest(raw, rules["choices"])
        origin = self._origin_of(keys)
        place = origin.variable or self._place(keys, raw)
        error = ConfigError(message, path=origin.path, line=origin.line, key=place)
        self.problems.append(error)
        return _INVALID

    def _place(self, keys: Keys, raw: Any) -> str | None:
        """`[limits] drain_s`, `[[neurons]] name`, `[limits]`, or a bare key."""
        names = [key for key in keys if isinstance(key, str)]
        if not names:
            return None
        if len(names) == 1 and not _is_table(self._root, names[0], raw):
            return names[0]
        array = len(keys) > 1 and isinstance(keys[1], int)
        section = f"[[{names[0]}]]" if array else f"[{names[0]}]"
        return " ".join([section, ".".join(names[1:])]).rstrip()


def nearest(name: str, known: Any) -> str:
    """` (did you mean 'x'?)`, or nothing when no name is close."""
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def leaves(cls: type[Any], keys: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys of every plain value; those in arrays of tables without an index."""
    for name, hint in get_type_hints(cls).items():
        section = _section(hint)
        if section is None:
            yield (*keys, name)
        else:
            yield from leaves(section, (*keys, name))


def hint_of(cls: type[Any], keys: tuple[str, ...]) -> Any:
    """The type of a plain value outside arrays of tables; None when there is none."""
    hint: Any = cls
    for key in keys:
        if not is_dataclass(hint):
            return None
        hint = _without_none(get_type_hints(hint).get(key))[0]
    return None if _section(hint) else hint


def _section(hint: Any) -> Any:
    """The dataclass of a section or of an array of tables."""
    inner = _without_none(hint)[0]
    if get_origin(inner) is tuple:
        inner = get_args(inner)[0]
    return inner if is_dataclass(inner) else None


def _is_table(root: type[Any], name: str, raw: Any) -> bool:
    hint = get_type_hints(root).get(name)
    return isinstance(raw, dict) or (hint is not None and _section(hint) is not None)


def _without_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    rest = [arg for arg in get_args(hint) if arg is not type(None)]
    return rest[0], len(rest) < len(get_args(hint))


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _complaint(value: Any, rules: Rules) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "must be finite"
    if "min" in rules and value < rules["min"]:
        return f"must be at least {rules['min']}, not {value}"
    if "max" in rules and value > rules["max"]:
        return f"must be at most {rules['max']}, not {value}"
    if "choices" in rules and value not in rules["choices"]:
        choices = ", ".join([str(choice) for choice in rules["choices"]])
        return f"must be one of {choices}, not '{value}'"[:300]
    return ""


def _shown(raw: Any) -> str:
    """The kind of a value; the value itself could be a secret."""
    return _KINDS.get(type(raw), type(raw).__name__)
