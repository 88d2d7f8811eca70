"""The verb fault: simulated faults, on a node that allows them.

Used by cortexctl. It asks and tells; whether a fault may be ordered at all is the
node's decision, `[faults] injection`.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from cortexd.ctl import client
from cortexd.ctl.exits import CommandError, Exit
from cortexd.ctl.output import Output
from cortexd.ctl.table import Column, layout

Facts = dict[str, Any]


def fault(args: Namespace, output: Output) -> Exit:
    """`fault list` or `fault inject DEVICE KIND`."""
    return _inject(args, output) if args.action == "inject" else _list(args, output)


def _list(args: Namespace, output: Output) -> Exit:
    known = client.ask(client.node_socket(args.socket), "faults")
    if output.as_json:
        output.document(known)
        return Exit.DONE
    rows = [(row["kind"], row["what"]) for row in known["kinds"]]
    screen = output.screen
    columns = (Column("KIND"), Column("WHAT HAPPENS", least=20))
    output.lines(layout(columns, rows, width=screen.width, paint=screen.paint))
    output.lines(["", f"phases of a device: {' '.join(known['points'])}"])
    if not known["injection"]:
        output.say("none may be ordered here: [faults] injection is false")
    return Exit.DONE


def _inject(args: Namespace, output: Output) -> Exit:
    if not args.device or not args.kind:
        raise CommandError(
            "inject wants a device and a kind; nothing was done",
            Exit.USAGE,
            next_command="cortexctl fault list",
        )
    order = {
        "device": args.device,
        "kind": args.kind,
        "at_step": args.at_step,
        "request": args.request,
        "times": args.times,
    }
    reply = client.ask(client.node_socket(args.socket), "inject", order)
    if output.as_json:
        output.document(reply)
    else:
        where = f"{reply['device']}, generation {reply['generation']}"
        output.lines([f"{reply['kind']} is ordered for {where}"])
    return Exit.DONE
