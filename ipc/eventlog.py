"""What happened on this node, in order, across restarts: the source of `events`.

Owned by a supervisor. One JSON object per line in `path`; when that is full it becomes
`path.1` and a new file begins. Newest events are kept in memory, so that a reader costs
no disk access in the supervisor's loop.

    {"id": 17, "time_s": 1763725200.1, "kind": "device.died", "device": "gpu-0"}

Invariant: ids only grow, also over a restart and a torn last line; a full disk loses
history, never an event of this life.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; `fields` say to what."""

    id: int
    time_s: float
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Flat, as it is stored and sent."""
        head = {"id": self.id, "time_s": self.time_s, "kind": self.kind}
        return head | {k: v for k, v in self.fields.items() if k not in head}


class EventLog:
    """Appends events and finds the ones after an id."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = 8 << 20,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.failed_writes = 0
        self._path = path
        self._max_bytes = max_bytes
        self._clock = clock
        self._events: deque[Event] = deque(maxlen=_KEPT)
        torn = self._read(self._older) + self._read(path)
        self._next_id = (self._events[-1].id if self._events else 0) + 1 + torn
        self._size, self._missing_end = _end_of(path)

    def append(self, kind: str, **fields: Any) -> Event:
        """Note that something happened now."""
        event = Event(self._next_id, round(self._clock(), 3), kind, fields)
        self._next_id += 1
        self._events.append(event)
        self._write(json.dumps(event.to_dict(), default=str).encode() + b"\n")
        return event

    def since(self, id: int, limit: int = 1000) -> list[Event]:
        """The oldest `limit` events after `id` that are still known."""
        return list(islice((event for event in self._events if event.id > id), limit))

    @property
    def _older(self) -> Path:
        return self._path.with_name(self._path.name + ".1")

    def _write(self, line: bytes) -> None:
        """A full or broken disk is counted and doesn't stop the supervisor."""
        try:
            if self._size and self._size + len(line) > self._max_bytes:
                os.replace(self._path, self._older)
                self._size, self._missing_end = 0, b""
            written = _append(self._path, self._missing_end + line)
        except OSError:
            self.failed_writes += 1
            return
        self._size += written
        is_whole = written == len(self._missing_end + line)
        self._missing_end = b"" if is_whole else b"\n"
        self.failed_writes += not is_whole

    def _read(self, path: Path) -> int:
        """Take in a file's newest events; returns how many lines were torn."""
        torn = 0
        try:
            with path.open("rb") as file:
                lines = deque(file, maxlen=_KEPT)
        except OSError:
            return 0
        for line in lines:
            event = _parse(line)
            if event is None:
                torn += 1
            else:
                self._events.append(event)
        return torn


def _parse(line: bytes) -> Event | None:
    try:
        fields = json.loads(line)
        return Event(
            int(fields.pop("id")),
            float(fields.pop("time_s")),
            str(fields.pop("kind")),
            fields,
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _append(path: Path, data: bytes) -> int:
    """Returns how much of it a disk that may be full has taken."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def _end_of(path: Path) -> tuple[int, bytes]:
    """The file's size, and what ends a last line that a crash has torn."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            return size, b"" if file.read(1) in (b"", b"\n") else b"\n"
    except OSError:
        return 0, b""
