"""Line numbers of the keys of a TOML text, which tomllib doesn't give.

Used by ipc.settings in every process that reads a configuration file. A text that
tomllib accepts is scanned once, line by line; only table headers and keys are looked
at. A path is a tuple of keys, with an index after the name of an array of tables:
`("neurons", 1, "name")`.

Invariant: never wrong about a key it knows; a key it can't see (inside an inline table)
has the line of the nearest enclosing key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

Path = tuple[str | int, ...]

_PART = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_KEYS = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_KEYS})\s*\]")
_ASSIGNMENT = re.compile(rf"\s*({_KEYS})\s*=(.*)")
_MULTILINE_QUOTES = ('"""', "'''")


class LineMap:
    """Where each key of `text` stands; lines count from 1."""

    def __init__(self, text: str) -> None:
        self._lines: dict[Path, int] = {}
        self._arrays: dict[Path, int] = {}
        self._table: Path = ()
        for number, line in _visible_lines(text):
            self._scan(number, line)

    def find(self, path: Path) -> int | None:
        """The line of `path`, or of the nearest table or key around it."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path)

    def _scan(self, number: int, line: str) -> None:
        if header := _HEADER.match(line):
            self._table = self._enter(_parts(header[2]), array=header[1] == "[[")
            self._lines.setdefault(self._table, number)
        elif assignment := _ASSIGNMENT.match(line):
            path = (*self._table, *_parts(assignment[1]))
            for end in range(len(self._table) + 1, len(path) + 1):
                self._lines.setdefault(path[:end], number)

    def _enter(self, parts: Path, *, array: bool) -> Path:
        """The path of a table; a name that is an array means its newest entry."""
        path: Path = ()
        for part in parts[:-1]:
            path = (*path, part)
            if path in self._arrays:
                path = (*path, self._arrays[path])
        path = (*path, parts[-1])
        if not array:
            return path
        self._arrays[path] = self._arrays.get(path, -1) + 1
        return (*path, self._arrays[path])


def _parts(dotted: str) -> Path:
    return tuple(part.strip("\"'") for part in re.findall(_PART, dotted))


def _visible_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that don't begin inside a multi-line string."""
    closing = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not closing:
            yield number, line
        closing = _open_quote(line, closing)


def _open_quote(line: str, closing: str) -> str:
    """The quotes that the next line must close; `closing` those that this one must."""
    if closing:
        _, found, rest = line.partition(closing)
        return _open_quote(rest, "") if found else closing
    hits = [(line.find(q), q) for q in _MULTILINE_QUOTES if q in line]
    if not hits or "#" in line[: min(hits)[0]]:
        return ""
    position, quotes = min(hits)
    return _open_quote(line[position + 3 :], quotes)
