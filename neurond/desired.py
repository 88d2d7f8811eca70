"""Which models an operator wants here, kept over restarts.

Supervisor. Files are the truth for settings; what was loaded or unloaded at runtime is
state, and stands in one JSON document beside the event log.

    {"loaded": {id: spec, …}, "unloaded": [id, …]}

Invariant: the file is replaced whole; a file that can't be read is an empty state and a
line in the journal, never a node that won't start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ipc.journal import Journal

Spec = dict[str, Any]

_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
)


class Desired:
    """Owns the file."""

    def __init__(self, path: Path, journal: Journal) -> None:
        self._path = path
        self._journal = journal
        self.loaded: dict[str, Spec] = {}
        self.unloaded: set[str] = set()
        self._read()

    def wanted(self, defaults: Iterable[str]) -> dict[str, Spec]:
        """What to load at a start: what was loaded, else the defaults."""
        found: dict[str, Spec] = {name: {} for name in defaults} | self.loaded
        return {name: s for name, s in found.items() if name not in self.unloaded}

    def want(self, model: str, spec: Mapping[str, Any]) -> None:
        self.unloaded.discard(model)
        self.loaded[model] = dict(spec)
        self._write()

    def release(self, model: str) -> None:
        self.loaded.pop(model, None)
        self.unloaded.add(model)
        self._write()

    def _read(self) -> None:
        try:
            document = json.loads(self._path.read_text())
            loaded = {str(k): dict(v) for k, v in document["loaded"].items()}
            unloaded = {str(name) for name in document["unloaded"]}
        except FileNotFoundError:
            return
        except _UNREADABLE as error:
            self._journal.warning("desired models can't be read", cause=str(error))
            return
        self.loaded, self.unloaded = loaded, unloaded

    def _write(self) -> None:
        content = {"loaded": self.loaded, "unloaded": sorted(self.unloaded)}
        partial = self._path.with_suffix(".partial")
        try:
            with partial.open("w") as file:
                json.dump(content, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path)
        except OSError as error:
            self._journal.error("desired models can't be written", cause=str(error))
