"""Where a verb's data and words go: data to stdout, words to stderr (C8).

Used by cortexctl. With `--json` the data is one document (streams: one object a line),
errors included, numbers raw with the unit in the key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TextIO

from cortexd.ctl.exits import CommandError, Exit, exit_for
from cortexd.ctl.screen import Screen
from ipc.errors import ServiceError


@dataclass(frozen=True, slots=True)
class Output:
    """One run's stdout and stderr with what they can show."""

    out: TextIO
    err: TextIO
    screen: Screen
    words: Screen
    as_json: bool = False

    def lines(self, lines: Iterable[str]) -> None:
        """Data for people."""
        for line in lines:
            self.out.write(line + "\n")
        self.out.flush()

    def document(self, value: Any) -> None:
        """Data for programs: one document."""
        json.dump(value, self.out, ensure_ascii=False, indent=2)
        self.out.write("\n")
        self.out.flush()

    def record(self, value: Any) -> None:
        """Data for programs: one object of a stream."""
        self.out.write(json.dumps(value, ensure_ascii=False) + "\n")
        self.out.flush()

    def say(self, text: str) -> None:
        """Words beside the data; also the place of progress and errors."""
        self.err.write(text + "\n")
        self.err.flush()

    def failure(self, error: CommandError | ServiceError) -> Exit:
        """Report what went wrong and the next command; the exit code to leave with."""
        report = describe(error)
        if self.as_json:
            self.document({"error": report})
        self.say(f"cortexctl: {report['message']}")
        if report["next"]:
            self.say(f"  next: {report['next']}")
        return Exit(report["exit"])


def describe(error: CommandError | ServiceError) -> dict[str, Any]:
    """An error as one flat object: message, ref, exit, next and the error's fields."""
    if isinstance(error, CommandError):
        return {
            "code": error.ref,
            "message": str(error),
            "next": error.next_command,
            "exit": int(error.exit_code),
        }
    ref = f"{error.row.ref}: " if error.row.ref not in error.message else ""
    return {
        **error.fields,
        "code": error.row.ref,
        "message": f"{ref}{error.message}",
        "next": error.row.next_command,
        "exit": int(exit_for(error)),
    }
