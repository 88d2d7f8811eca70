"""What happened, told everywhere at once: event log, followers, journal.

Supervisor. An event's kind is its name in all three, so that a line in the journal, an
entry of `cortexctl events` and a message to a follower are found by the same word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ipc.eventlog import Event, EventLog
from ipc.journal import Journal
from ipc.messages import Fault

_BAD = (".died", ".failed", "_failed")


class Chronicle:
    """`tell` reaches those who follow the events."""

    def __init__(
        self, journal: Journal, events: EventLog, tell: Callable[[Event], None]
    ) -> None:
        self._journal = journal
        self._events = events
        self._tell = tell

    def note(self, kind: str, **fields: Any) -> None:
        self._tell(self._events.append(kind, **fields))
        say = self._journal.warning if kind.endswith(_BAD) else self._journal.info
        say(kind.replace(".", " ").replace("_", " "), event=kind, **fields)

    def poisoned(self, device: str, fault: Fault) -> None:
        """A device's context is lost; only a supervisor writes this line."""
        self._journal.error(
            "model marked poisoned",
            event="model.poisoned",
            device=device,
            model=fault.model,
            fault=f"{fault.fault_class}: {fault.type}",
            code=fault.code,
            generation=fault.generation,
            request=",".join(map(str, fault.requests)),
            cause=" <- ".join(fault.chain),
        )
