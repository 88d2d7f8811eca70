"""Grammars on the fake backend: looked at, never obeyed; late or refused as told.

Device process, torch-free. Options of a load: compile_ms (how long a grammar takes),
compile_fail (true: this model can't obey any).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from ipc.errors import ClientError
from neurond.device.sequence import Sequence

_GRAMMARS = {"json_schema", "json_object", "regex", "lark"}


class FakeGrammars:
    """Keeps in `sequence.grammar` when it will be compiled."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock

    def prepare(self, sequence: Sequence) -> None:
        if sequence.submit.grammar:
            options = sequence.model.body.options
            sequence.grammar = self._clock() + options.get("compile_ms", 0) / 1e3

    def is_ready(self, sequence: Sequence) -> bool:
        """Raises ClientError for what doesn't look like a grammar, and as told."""
        if not sequence.submit.grammar:
            return True
        if self._clock() < sequence.grammar:
            return False
        if sequence.model.body.options.get("compile_fail"):
            words = "the grammar can't be used: this model obeys none"
            raise ClientError(words, param="response_format")
        _check(sequence.submit.grammar)
        return True


def _check(grammar: str) -> None:
    try:
        kinds = set(json.loads(grammar))
    except (ValueError, TypeError):
        kinds = set()
    if len(kinds) != 1 or not kinds <= _GRAMMARS:
        raise ClientError("not a grammar", param="response_format")
