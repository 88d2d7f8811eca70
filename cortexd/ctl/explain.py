"""The verbs that need no daemon: explain and help."""

from __future__ import annotations

import difflib
from argparse import Namespace
from dataclasses import asdict

from cortexd.ctl.exits import MEANING, CommandError, Exit
from cortexd.ctl.output import Output
from cortexd.ctl.table import Column, layout
from ipc.errors import TABLE, ErrorRow

_WHO = {
    "client": "whoever sent the request",
    "capacity": "nobody, or an operator who adds room",
    "host": "the operator of the host",
    "device": "nobody: the supervisor restarts the device",
    "peer": "the operator of the node",
}


def explain(args: Namespace, output: Output) -> Exit:
    """Cause and cure of one error code, or the list of all."""
    if args.code:
        _explain_one(find(args.code), output)
    else:
        _list_all(output)
    return Exit.DONE


def find(code: str) -> ErrorRow:
    """The row of a CX- id, an API code or either misspelt in case."""
    wanted = code.strip().upper().replace("-", "_")
    for row in TABLE.values():
        if wanted in (row.ref.replace("-", "_"), row.code.upper()):
            return row
    known = [name for row in TABLE.values() for name in (row.ref, row.code)]
    near = difflib.get_close_matches(code, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise CommandError(
        f"there is no error code {code}{hint}",
        Exit.NOT_FOUND,
        next_command="cortexctl explain",
    )


def exit_codes(output: Output) -> Exit:
    """`cortexctl help exit-codes`."""
    if output.as_json:
        output.document({str(int(code)): text for code, text in MEANING.items()})
    else:
        output.lines(f"{int(code):>3}  {text}" for code, text in MEANING.items())
    return Exit.DONE


def _explain_one(row: ErrorRow, output: Output) -> None:
    if output.as_json:
        output.document(asdict(row))
        return
    retry = f"after {row.retry_after_s} s" if row.retry_after_s else "does not help"
    output.lines(
        [
            f"{row.ref}  ({row.code}, HTTP {row.status})",
            f"  cause     {row.cause}",
            f"  who acts  {_WHO[row.kind]}",
            f"  retry     {retry if row.status != 500 else 'may help'}",
            f"  next      {row.next_command}",
        ]
    )


def _list_all(output: Output) -> None:
    if output.as_json:
        output.document([asdict(row) for row in TABLE.values()])
        return
    rows = [(row.ref, str(row.status), row.code) for row in TABLE.values()]
    columns = (Column("REF"), Column("HTTP"), Column("CODE"))
    screen = output.screen
    output.lines(layout(columns, rows, width=screen.width, paint=screen.paint))
