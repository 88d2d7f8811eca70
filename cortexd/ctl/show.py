"""The verbs that show: status, models, devices, version."""

from __future__ import annotations

import sys
import time
from argparse import Namespace

import ipc
from cortexd.ctl import client, views
from cortexd.ctl import overview as o
from cortexd.ctl.exits import CommandError, Exit
from cortexd.ctl.output import Output


def status(args: Namespace, output: Output) -> Exit:
    """Node, gateway, devices, models and what needs attention, on one screen."""
    overview = _ask(args)
    if output.as_json:
        output.document(o.document(overview))
    else:
        output.lines(views.status(overview, output.screen, time.time()))
    return Exit.DONE if o.is_ready(overview) else Exit.DEGRADED


def models(args: Namespace, output: Output) -> Exit:
    """One row per model and node."""
    rows = o.models(_ask(args))
    if output.as_json:
        output.document(rows)
    elif rows:
        output.lines(views.models(rows, output.screen, time.time()))
    else:
        output.say("no models: `cortexctl load ID --source FOLDER` adds one")
    return Exit.DONE


def devices(args: Namespace, output: Output) -> Exit:
    """One row per device; `reset-done`: an operator did what one waited for."""
    if args.action:
        return _reset_done(args, output)
    rows = o.devices(_ask(args))
    if output.as_json:
        output.document(rows)
    elif rows:
        output.lines(views.devices(rows, output.screen, time.time()))
    else:
        output.say("no devices are known")
    return Exit.DONE


def version(args: Namespace, output: Output) -> Exit:
    """cortexctl's own version, then those of the daemons that answer."""
    found = {"cortexctl": ipc.__version__, "python": sys.version.split()[0]}
    try:
        for kind, facts in client.statuses(args.socket).items():
            known = facts.get("version") or {}
            found |= {f"{kind} {name}": str(text) for name, text in known.items()}
    except CommandError as error:
        output.say(f"cortexctl: {error}")
    if output.as_json:
        output.document(found)
    else:
        width = max(map(len, found))
        output.lines(f"{name:<{width}}  {text}" for name, text in found.items())
    return Exit.DONE


def _reset_done(args: Namespace, output: Output) -> Exit:
    if not args.device:
        text = "which device was reset?"
        raise CommandError(text, Exit.USAGE, next_command="cortexctl devices")
    path = client.node_socket(args.socket)
    client.ask(path, "reset_done", {"device": args.device})
    if output.as_json:
        output.document({"device": args.device})
    else:
        output.say(f"{args.device} is tried again; follow it: cortexctl devices")
    return Exit.DONE


def _ask(args: Namespace) -> o.Overview:
    return o.Overview(**client.statuses(args.socket))
