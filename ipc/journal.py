"""The journal of one process: every line it has for the operator, with its fields.

Used by every process; one Journal each, made in its main. Under systemd a record goes
to journald with fields of its own, so that a question is a field and not a grep:

    journal.error("model marked poisoned", event="model.poisoned", device="gpu-0")
    journalctl DEVICE=gpu-0 · journalctl MESSAGE_ID=$(message_id("model.poisoned"))

Elsewhere it is a line on stderr, readable or (CORTEX_LOG=json) a JSON object. A record
that is repeated exactly is written once per window, the next time with a count.

Invariant: never raises, never blocks longer than one bounded send.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, TextIO

from ipc import systemd

Mode = Literal["auto", "text", "json", "native"]

_PRIORITIES = {"error": 3, "warning": 4, "info": 6}
_FOLD_S = 10.0
_MAX_FOLDED = 256
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160))}


class Journal:
    """Writes records in the mode chosen at its birth.

    In text and JSON mode records go to `stream`; in native mode to journald, and to
    `stream` when journald doesn't take them. `fold_s` 0 writes every repeat.
    """

    def __init__(  # noqa: PLR0913  the last two only for tests
        self,
        identifier: str,
        *,
        stream: TextIO | None = None,
        mode: Mode = "auto",
        fold_s: float = _FOLD_S,
        clock: Callable[[], float] = time.time,
        send: Callable[[dict[str, object]], bool] = systemd.send_native,
    ) -> None:
        self.identifier = identifier
        self._stream = stream or sys.stderr
        self._mode = _choose(mode, self._stream)
        self._fold_s = fold_s
        self._clock = clock
        self._send = send
        self._folds: dict[object, _Fold] = {}

    def info(self, message: str, *, event: str = "", **fields: object) -> None:
        self._record("info", message, event, fields)

    def warning(self, message: str, *, event: str = "", **fields: object) -> None:
        self._record("warning", message, event, fields)

    def error(self, message: str, *, event: str = "", **fields: object) -> None:
        self._record("error", message, event, fields)

    def flush(self) -> None:
        """Write the counts of repeats whose window is over; called from a tick."""
        self._write_folded(self._clock())

    def close(self) -> None:
        """Write the counts of all repeats."""
        self._write_folded(float("inf"))

    def _record(
        self, level: str, message: str, event: str, fields: dict[str, object]
    ) -> None:
        now_s = self._clock()
        given = {key: value for key, value in fields.items() if value is not None}
        self._write_folded(now_s)
        key = (level, message, event, repr(given))
        if fold := self._folds.get(key):
            fold.count += 1
            return
        if self._fold_s > 0 and len(self._folds) < _MAX_FOLDED:
            self._folds[key] = _Fold(now_s + self._fold_s, level, message, event, given)
        self._write(level, message, event, given)

    def _write_folded(self, now_s: float) -> None:
        over = [key for key, fold in self._folds.items() if fold.until_s <= now_s]
        for key in over:
            fold = self._folds.pop(key)
            if fold.count:
                message = f"{fold.message} (× {fold.count} more)"
                self._write(fold.level, message, fold.event, fold.fields)

    def _write(
        self, level: str, message: str, event: str, fields: dict[str, object]
    ) -> None:
        if self._mode == "native" and self._send(
            _native(self.identifier, level, message, event, fields)
        ):
            return
        shape = _json if self._mode == "json" else _text
        try:
            line = shape(self._clock(), self.identifier, level, message, event, fields)
            self._stream.write(line.encode("utf-8", "backslashreplace").decode() + "\n")
            self._stream.flush()
        except (OSError, ValueError, TypeError):
            return  # stderr is closed or full: there is nobody left to tell


class _Fold:
    """A record that was written, and how often it came again within its window."""

    def __init__(
        self, until_s: float, level: str, message: str, event: str, fields: Any
    ) -> None:
        self.until_s = until_s
        self.level = level
        self.message = message
        self.event = event
        self.fields = fields
        self.count = 0


def message_id(event: str) -> str:
    """journald's MESSAGE_ID of a kind of event: the same on every host, for ever."""
    return hashlib.blake2b(event.encode(), digest_size=16, person=b"cortex").hexdigest()


def _choose(mode: Mode, stream: TextIO) -> Mode:
    if mode != "auto":
        return mode
    wanted = os.environ.get("CORTEX_LOG", "")
    if wanted == "json":
        return "json"
    return "native" if not wanted and _is_journal(stream) else "text"


def _is_journal(stream: TextIO) -> bool:
    """Whether the service manager connected this very stream to the journal."""
    try:
        stat = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def _native(
    identifier: str, level: str, message: str, event: str, fields: dict[str, object]
) -> dict[str, object]:
    record = {_field_name(key): value for key, value in fields.items()}
    if event:
        record |= {"EVENT": event, "MESSAGE_ID": message_id(event)}
    return record | {
        "MESSAGE": message,
        "PRIORITY": _PRIORITIES[level],
        "SYSLOG_IDENTIFIER": identifier,
    }


def _field_name(key: str) -> str:
    """journald takes capitals, digits and inner underscores only, 64 at most."""
    return re.sub(r"[^A-Z0-9_]", "_", key.upper()).lstrip("_0123456789")[:64] or "FIELD"


def _json(  # noqa: PLR0913  the parts of a record
    now_s: float,
    identifier: str,
    level: str,
    message: str,
    event: str,
    fields: dict[str, object],
) -> str:
    head = {"time_s": round(now_s, 3), "process": identifier, "level": level}
    named = {"event": event} if event else {}
    rest = {key: value for key, value in fields.items() if key not in head}
    return json.dumps({**head, "message": message, **named, **rest}, default=str)


def _text(  # noqa: PLR0913  the parts of a record
    now_s: float,
    identifier: str,
    level: str,
    message: str,
    _event: str,
    fields: dict[str, object],
) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(now_s))
    prefix = "" if level == "info" else f"{level}: "
    pairs = ", ".join([f"{key}={value}" for key, value in fields.items()])
    tail = f" ({pairs})" if pairs else ""
    # control characters could forge a line or drive a terminal
    return f"{clock} {identifier}  {prefix}{message}{tail}".translate(_CONTROLS)
