"""The verb `events`: what happened on the node, also before its last restart."""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from cortexd.ctl import client
from cortexd.ctl.exits import Exit
from cortexd.ctl.output import Output
from ipc import controlcall

Facts = dict[str, Any]
_FRAME = ("id", "time_s", "kind")
_ALL = 10_000
_PAGE = 1000
_DEFAULT_LIMIT = 20


def events(args: Namespace, output: Output) -> Exit:
    """The last events in order of time; with --follow also those to come."""
    path = client.event_socket(args.socket)
    known = _known(path, args.since or 0)
    for event in known[-_count(args) :]:
        _show(event, output)
    if args.follow:
        last = int(known[-1].get("id", 0)) if known else 0
        _follow(path, last, args.timeout, output)
    elif not known and not output.as_json:
        output.say("no events")
    return Exit.DONE


def _known(path: Path, since: int) -> list[Facts]:
    """Everything after `since`, asked for in pages: a daemon bounds its answers."""
    known: list[Facts] = []
    while len(known) < _ALL:
        last = int(known[-1].get("id", 0)) if known else since
        asked = {"since": last, "limit": _PAGE}
        page = client.ask(path, "events", asked).get("events", [])
        known += page
        if len(page) < _PAGE:
            break
    return known


def _count(args: Namespace) -> int:
    """Newest events win; who names a beginning wants all that followed."""
    if args.limit is not None:
        return max(1, int(args.limit))
    return _ALL if args.since is not None else _DEFAULT_LIMIT


def _follow(path: Path, last: int, timeout_s: float | None, output: Output) -> None:
    """Until --timeout, or for ever: what arrived during the question comes once."""
    end = time.monotonic() + timeout_s if timeout_s else None
    for _topic, event in controlcall.follow(path, ["events"], timeout_s=timeout_s):
        if event and int(event.get("id", 0)) > last:
            _show(event, output)
        if end and time.monotonic() >= end:
            return


def _show(event: Facts, output: Output) -> None:
    if output.as_json:
        output.record(event)
    else:
        output.lines([line(event)])


def line(event: Facts) -> str:
    """One event: local time, kind, fields."""
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.get("time_s", 0)))
    fields = [f"{k}={v}" for k, v in event.items() if k not in _FRAME and v != ""]
    return "  ".join([clock, str(event.get("kind", "?")), " ".join(fields)]).rstrip()
