"""Exit codes of cortexctl: what a script learns without reading a word.

Used by cortexctl alone; the daemons' codes (0, 70, 100, 111) are another table. A
caller may treat every code but 0 as "not done", also codes that are added later.
"""

from __future__ import annotations

from enum import IntEnum

from ipc.errors import ServiceError


class Exit(IntEnum):
    """One row per outcome; `MEANING` has the words."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    DEGRADED = 3
    NOT_FOUND = 4
    NOT_ALLOWED = 5
    REFUSED = 6
    UNREACHABLE = 7
    TIMED_OUT = 8
    INTERRUPTED = 130


MEANING: dict[Exit, str] = {
    Exit.DONE: "done",
    Exit.FAILED: "failed",
    Exit.USAGE: "wrong usage; nothing was done",
    Exit.DEGRADED: "answered, but degraded or not ready",
    Exit.NOT_FOUND: "no such model, device or code",
    Exit.NOT_ALLOWED: "not allowed",
    Exit.REFUSED: "refused: no room, busy, draining or changed meanwhile",
    Exit.UNREACHABLE: "no daemon answers",
    Exit.TIMED_OUT: "timed out; it goes on in the background",
    Exit.INTERRUPTED: "interrupted; it goes on in the background",
}

_BY_CODE: dict[str, Exit] = {
    "model_not_found": Exit.NOT_FOUND,
    "not_found": Exit.NOT_FOUND,
    "invalid_api_key": Exit.NOT_ALLOWED,
    "insufficient_permissions": Exit.NOT_ALLOWED,
    "insufficient_vram": Exit.REFUSED,
    "version_conflict": Exit.REFUSED,
    "queue_full": Exit.REFUSED,
    "rate_limit_exceeded": Exit.REFUSED,
    "shutting_down": Exit.REFUSED,
    "cuda_unavailable": Exit.REFUSED,
    "device_failed": Exit.REFUSED,
}


class CommandError(Exception):
    """A verb that can't be done: what, its exit code, and what to type next."""

    def __init__(
        self, message: str, exit_code: Exit, *, next_command: str = "", ref: str = ""
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.next_command = next_command
        self.ref = ref


def exit_for(error: ServiceError) -> Exit:
    """The exit code of a daemon's refusal; what has no row is a failure."""
    return _BY_CODE.get(error.code, Exit.FAILED)
