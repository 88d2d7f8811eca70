"""A request table with one entry on one line, to which things happen by name."""

from __future__ import annotations

from typing import Any

from ipc.errors import error_for
from ipc.messages import (
    Accepted,
    Failed,
    Finished,
    Progress,
    PromptScores,
    RingUp,
    Submit,
    TokenRow,
    Tokens,
    Vector,
)
from neurond.serving.entries import Entry
from neurond.serving.requests import RequestTable
from tests.neurond.serving.lines import Heard, Line, submit

DEVICE = "gpu-0"
FIRST_ID = 100
DEADLINE_S = 120.0
FAILED = error_for("nan_logits", "NaN").to_wire()
LOST = error_for("device_failed", "taken out")


class Bench:
    """The entry's id is FIRST_ID, its prompt (1, 2, 3); every device's life is 1."""

    def __init__(self, max_entries: int = 8, **rules: Any) -> None:
        self.now_s = 0.0
        self.resumed: list[Submit] = []
        self.convicted: list[Submit] = []
        known = {"resume_deadline_s": DEADLINE_S, **rules}
        self.table = RequestTable(
            first_id=FIRST_ID,
            max_entries=max_entries,
            clock=lambda: self.now_s,
            on_resumed=self.resumed.append,
            on_convicted=self.convicted.append,
            **known,
        )
        self.line = Line()
        self.table.on_up(DEVICE, self.line)
        self.heard = Heard()
        self.entry = self.add(self.heard)

    def add(self, heard: Heard | None = None, **fields: Any) -> Entry:
        sink = heard or Heard()
        return self.table.submit(DEVICE, self.line, submit(**fields), sink)

    def say(self, message: RingUp) -> None:
        self.table.on_message(DEVICE, self.line, message)

    def happen(self, event: str, request: int = FIRST_ID) -> None:
        """`down` and `up` are of the line's life; those after it are numbered on."""
        match event:
            case "cancel":
                self.table.cancel(self.entry)
            case "down":
                self.table.on_down(DEVICE, self.line.generation)
            case "convicted":
                self.table.on_down(DEVICE, self.line.generation, (), [request])
            case "lost":
                self.table.give_up(self.entry, LOST)
            case "up":
                self.line = Line(self.line.generation + 1)
                self.table.on_up(DEVICE, self.line)
            case _:
                self.say(message_of(event, request, len(self.entry.emitted)))


def message_of(event: str, request: int, emitted: int) -> RingUp:
    messages: dict[str, RingUp] = {
        "accepted": Accepted(request, 0, 2),
        "progress": Progress(request, 1, 3),
        "scores": PromptScores(request, 1, (-0.5,)),
        "tokens": Tokens((TokenRow(request, emitted, (5, 6)),)),
        "vector": Vector(request, b"\0" * 8),
        "finished": Finished(request, "stop", 3, emitted, 2),
        "failed": Failed(request, FAILED),
    }
    return messages[event]
