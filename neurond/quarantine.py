"""Requests that killed a device while they ran alone; they are refused for a while.

Supervisor, which alone keeps them; every front end reads them in the facts. A request
is named by a fingerprint of its model and prompt, so that a client's retry is the same.

Invariant: bounded in number and in time; the newest stay.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

MOST = 1024
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")
_MAX_MODEL_CHARS = 256


class Quarantine:
    """`clock` gives unix time."""

    def __init__(
        self, lifetime_s: float, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._entries: dict[str, tuple[str, float]] = {}
        self.total = 0

    def add(self, fingerprint: str, model: str) -> bool:
        """False: it was there, is no fingerprint, or nothing is kept here."""
        if not _FINGERPRINT.fullmatch(fingerprint) or len(model) > _MAX_MODEL_CHARS:
            return False
        is_new = not any(fingerprint == entry["fingerprint"] for entry in self.facts())
        self._entries.pop(fingerprint, None)
        self._entries[fingerprint] = (model, self._clock() + self._lifetime_s)
        while len(self._entries) > MOST:
            del self._entries[next(iter(self._entries))]
        self.total += is_new
        return is_new and self._lifetime_s > 0

    def facts(self) -> list[dict[str, Any]]:
        """Those in force, oldest first."""
        self._forget()
        return [
            {"fingerprint": fingerprint, "model": model, "until_s": until_s}
            for fingerprint, (model, until_s) in self._entries.items()
        ]

    def _forget(self) -> None:
        now_s = self._clock()
        kept = {k: entry for k, entry in self._entries.items() if entry[1] > now_s}
        self._entries = kept
