"""What a front-end worker is told at its start: one frozen record.

Built by the supervisor, travels as plain values in `FrontendSettings.extra` (the
settings memfd), read once by `app.create`. Nothing here imports the web stack, so the
supervisor may use it.

Invariant: everything a worker knows beyond this comes over control.sock.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from neurond.serving.hygiene import Rule

TITLE_PREFIX = "neurond"
APP = "neurond.frontend.app:create"
PRELOAD = ("neurond.frontend.app",)
CHILD_EXIT = "neurond.frontend.metrics:mark_dead"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Limits are those of the node's `[limits]`; an empty token means auth is off."""

    node: str
    attach_path: str
    control_path: str
    token: str = ""
    body_bytes: int = 32 << 20
    max_queue: int = 64
    load_deadline_s: float = 900.0
    resume: bool = True
    resume_deadline_s: float = 120.0
    log_format: str = "auto"
    hygiene: tuple[Rule, ...] = ()

    def to_extra(self) -> dict[str, Any]:
        return {**asdict(self), "child_exit": CHILD_EXIT}

    @classmethod
    def from_extra(cls, extra: dict[str, Any]) -> WorkerSettings:
        known = {f.name: extra[f.name] for f in fields(cls) if f.name in extra}
        rules = [Rule(**given) for given in known.pop("hygiene", ())]
        return cls(**known, hygiene=tuple(rules))


def frontend_settings(
    worker: WorkerSettings,
    *,
    fds: tuple[int, ...],
    workers: int,
    header_deadline_s: float,
    graceful_timeout_s: float,
) -> dict[str, Any]:
    """The document for `--settings-fd` of `python -m neurond.frontend`."""
    return {
        "title_prefix": TITLE_PREFIX,
        "app": APP,
        "fds": list(fds),
        "workers": workers,
        "graceful_timeout_s": graceful_timeout_s,
        "header_deadline_s": header_deadline_s,
        "preload": list(PRELOAD),
        "extra": worker.to_extra(),
    }
