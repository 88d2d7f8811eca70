"""The verb `events`: what happened on the node, also before its last restart."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import Any

from cortexd.ctl import client
from cortexd.ctl.exits import Exit
from cortexd.ctl.output import Output
from ipc import control

Facts = dict[str, Any]
_FRAME = ("id", "time_s", "kind")


def events(args: Namespace, output: Output) -> Exit:
    """The last events in order of time; with --follow also those to come."""
    path = client.node_socket(args.socket)
    known = client.ask(path, "events", {"since": args.since, "limit": args.limit})
    last = 0
    for event in known.get("events", ()):
        last = max(last, int(event.get("id", 0)))
        _show(event, output)
    if args.follow:
        _follow(path, last, args.timeout, output)
    elif not known.get("events") and not output.as_json:
        output.say("no events")
    return Exit.DONE


def _follow(path: Any, last: int, timeout_s: float | None, output: Output) -> None:
    """Until --timeout, or for ever: what arrived during the question comes once."""
    end = time.monotonic() + timeout_s if timeout_s else None
    for _topic, event in control.follow(path, ["events"], timeout_s=timeout_s):
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
