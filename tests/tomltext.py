"""TOML text of plain values, for the config files of daemons under test."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def to_toml(config: Mapping[str, Any]) -> str:
    """Sections of plain values, and lists of tables."""
    lines: list[str] = []
    for section, values in config.items():
        tables = values if isinstance(values, list) else [values]
        head = f"[[{section}]]" if isinstance(values, list) else f"[{section}]"
        for table in tables:
            lines += [head, *_pairs(table), ""]
    return "\n".join(lines)


def _pairs(table: Mapping[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        yield f"{key} = {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)  # strings, numbers and booleans are the same in TOML
