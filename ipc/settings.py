"""Configuration: TOML text and environment variables → frozen dataclasses.

Used by every process that has settings. A configuration class is a frozen dataclass
whose fields are sections (dataclasses), arrays of tables (`tuple[Section, ...]`) or
plain values: str, int, float, bool, Path, `Literal["a", "b"]`, tuples of those,
`dict[str, Any]`, each perhaps `| None`. Field metadata: `min`, `max`, `choices`,
`exists` ("file" or "folder"), `secret` (hidden by `redacted`), `doc`.

    [limits]                    class Config: limits: Limits = Limits()
    drain_s = 30                class Limits: drain_s: float = field(default=30, …)
    NEURON_LIMITS__DRAIN_S=10   the same from the environment, which wins

Invariant: read once, checked once; nothing unknown is let through, and the message
names file, line, section and key (S50). A daemon prints `str(error)` and exits 100.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_origin

from ipc.schema import Checker, ConfigError, Keys, Origin, hint_of, leaves, nearest
from ipc.tomllines import LineMap

__all__ = ["ConfigError", "build", "dump", "load", "problems", "redacted"]

T = TypeVar("T")
_MAX_FILE_BYTES = 4 << 20
_HIDDEN = "***"
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True} | {
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


def load(
    cls: type[T], path: Path | None, *, env_prefix: str, environ: Mapping[str, str]
) -> T:
    """The checked configuration. Raises ConfigError for the first mistake.

    Without `path` the class's defaults and the environment count. A relative path in
    the file is relative to the file's folder, one in a variable to the working folder.
    """
    config, mistakes = _read(cls, path, env_prefix, environ)
    if mistakes:
        raise mistakes[0]
    return config


def problems(
    cls: type[Any], path: Path | None, *, env_prefix: str, environ: Mapping[str, str]
) -> list[ConfigError]:
    """All mistakes of one pass, in the order of the file, then the environment's."""
    return _read(cls, path, env_prefix, environ)[1]


def build(cls: type[T], plain: dict[str, Any]) -> T:
    """Inverse of `dump`, in a child that got its settings from its parent."""
    checker = Checker(cls, lambda _keys: Origin(path=Path("settings")))
    config = checker.record(cls, plain)
    if checker.problems:
        raise checker.problems[0]
    return cast(T, config)


def dump(config: Any) -> dict[str, Any]:
    """The configuration as plain values that msgpack and JSON can carry."""
    return {f.name: _plain(getattr(config, f.name), dump) for f in fields(config)}


def redacted(config: Any) -> dict[str, Any]:
    """As `dump`, for eyes: what is marked `secret` is hidden."""
    return {
        f.name: _HIDDEN
        if f.metadata.get("secret") and getattr(config, f.name)
        else _plain(getattr(config, f.name), redacted)
        for f in fields(config)
    }


def _plain(value: Any, nested: Any) -> Any:
    if is_dataclass(value):
        return nested(value)
    if isinstance(value, tuple):
        return [_plain(item, nested) for item in value]
    return str(value) if isinstance(value, Path) else value


def _read(
    cls: type[T], path: Path | None, env_prefix: str, environ: Mapping[str, str]
) -> tuple[T, list[ConfigError]]:
    try:
        raw, lines = _parse(path) if path else ({}, LineMap(""))
    except ConfigError as error:
        return cast(T, None), [error]
    variables = _Variables(cls, env_prefix, environ)
    variables.put_into(raw)

    def origin_of(keys: Keys) -> Origin:
        variable = variables.name_of(keys)
        return Origin(variable=variable) if variable else Origin(path, lines.find(keys))

    checker = Checker(cls, origin_of)
    config = checker.record(cls, raw)
    mistakes = sorted(checker.problems, key=lambda e: (e.path is None, e.line or 0))
    return config, mistakes + variables.unknown


def _parse(path: Path) -> tuple[dict[str, Any], LineMap]:
    text = _text_of(path)
    try:
        return tomllib.loads(text), LineMap(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column \d+\)", str(error))
        last = text.count("\n") + 1
        message = re.sub(r" \(at .*\)", "", str(error))
        line = int(found[1]) if found else last
        raise ConfigError(f"not TOML: {message}", path=path, line=line) from error


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"can't be read: {reason}", path=path) from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"is over {_MAX_FILE_BYTES} bytes", path=path)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError("is not UTF-8", path=path, line=line) from error


class _Variables:
    """PREFIX_SECTION__KEY variables; others that begin with the prefix aren't ours."""

    def __init__(self, cls: type[Any], prefix: str, environ: Mapping[str, str]) -> None:
        self.unknown: list[ConfigError] = []
        self._cls = cls
        self._prefix = prefix.rstrip("_") + "_"
        self._names: dict[Keys, str] = {}
        self._environ = environ
        for name in sorted(environ):
            if name.startswith(self._prefix) and "__" in name[len(self._prefix) :]:
                self._take(name)

    def name_of(self, keys: Keys) -> str:
        """The variable that gave `keys`, or the list or table around it."""
        return next(
            (
                name
                for given, name in self._names.items()
                if keys[: len(given)] == given
            ),
            "",
        )

    def put_into(self, raw: dict[str, Any]) -> None:
        for keys, name in self._names.items():
            table: Any = raw
            for key in keys[:-1]:
                table = table.setdefault(key, {}) if isinstance(table, dict) else None
            if isinstance(table, dict):
                hint = hint_of(self._cls, cast(tuple[str, ...], keys))
                table[keys[-1]] = _from_text(hint, self._environ[name])

    def _take(self, name: str) -> None:
        keys = tuple(name[len(self._prefix) :].lower().split("__"))
        if hint_of(self._cls, keys) is not None:
            self._names[keys] = name
            return
        settable = [keys for keys in leaves(self._cls) if hint_of(self._cls, keys)]
        known = [self._prefix + "__".join(keys).upper() for keys in settable]
        message = f"is not known{nearest(name, known)}"
        self.unknown.append(ConfigError(message, key=name))


def _from_text(hint: Any, text: str) -> Any:
    """A variable's text as the value TOML would give; unfit text goes on as it is."""
    if hint is bool:
        return _BOOLEANS.get(text.lower(), text)
    container = get_origin(hint) or hint
    if container is tuple and not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    if container not in (int, float, tuple, dict):
        return text
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
