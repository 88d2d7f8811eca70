"""The verbs load and unload: ask the node, then follow its facts until it is done.

The node works on its own; these verbs only watch. So Ctrl-C and --timeout stop the
watching, never the work, and say so (C6). Both are idempotent.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cortexd.ctl import client
from cortexd.ctl.exits import MEANING, CommandError, Exit
from cortexd.ctl.output import Output
from cortexd.ctl.progress import Progress
from cortexd.ctl.units import span
from ipc import controlcall
from ipc.controlwire import ControlClosed
from ipc.errors import from_wire

Facts = dict[str, Any]
_TICK_S = 1.0
_LOAD_FIELDS = ("source", "dtype", "quant", "context", "priority", "pinned")
_BROKEN = ("failed", "poisoned")


def load(args: Namespace, output: Output) -> Exit:
    """Load a model; with --wait (the default) until it serves or has failed."""
    path = client.node_socket(args.socket)
    chosen = {name: getattr(args, name) for name in _LOAD_FIELDS}
    spec = {name: value for name, value in chosen.items() if value is not None}
    request = {"model_id": args.model, "wait": False, **spec}
    reply = client.ask(path, "load", request)
    if reply.get("status") == "loaded":
        return _done(args, output, reply, f"{args.model} is already loaded")
    if not args.wait:
        return _done(args, output, reply, f"{args.model} is {reply.get('status')}")
    return _watch(args, output, path, "loaded")


def unload(args: Namespace, output: Output) -> Exit:
    """Unload a model; asks first when requests would be lost."""
    path = client.node_socket(args.socket)
    model = _find(client.ask(path, "models"), args.model)
    if model and model.get("status") == "unloaded":
        reply = {"status": "unloaded", "model": model}
        return _done(args, output, reply, f"{args.model} is already unloaded")
    if model and not args.yes:
        _ask_first(model)
    reply = client.ask(path, "unload", {"model_id": args.model, "wait": False})
    if reply.get("status") == "unloaded" or not args.wait:
        return _done(args, output, reply, f"{args.model} is {reply.get('status')}")
    return _watch(args, output, path, "unloaded")


def _watch(args: Namespace, output: Output, path: Path, goal: str) -> Exit:
    progress = Progress(output.err, output.words, time.monotonic, output.say)
    began_s = time.monotonic()
    try:
        model = _until_settled(path, args.model, began_s + args.timeout, goal, progress)
    except KeyboardInterrupt:
        progress.clear()
        output.say(f"cortexctl: {MEANING[Exit.INTERRUPTED]}; {_leave(args, goal)}")
        return Exit.INTERRUPTED
    except TimeoutError:
        progress.clear()
        raise CommandError(
            f"{args.model} is not {goal} after {span(args.timeout)};"
            f" it goes on in the background; {_leave(args, goal)}",
            Exit.TIMED_OUT,
            next_command="cortexctl models",
        ) from None
    progress.clear()
    took = span(time.monotonic() - began_s)
    reply = {"status": goal, "model": model}
    return _done(args, output, reply, f"{args.model} is {goal} ({took})")


def _until_settled(
    path: Path, wanted: str, deadline_s: float, goal: str, progress: Progress
) -> Facts:
    """The model's facts once it is where it should be. Raises what went wrong."""
    for facts in _states(path, deadline_s):
        model = _find(facts, wanted) or {"id": wanted, "status": "unloaded"}
        status = model.get("status")
        if status == goal:
            return model
        if status in _BROKEN:
            progress.clear()
            raise _failure(model)
        progress.show(model)
    raise TimeoutError


def _states(path: Path, deadline_s: float) -> Iterator[Facts]:
    """The node's facts whenever they change, and once a second when they don't."""
    while (left_s := deadline_s - time.monotonic()) > 0:
        try:
            tick_s = min(left_s, _TICK_S)
            for _topic, facts in controlcall.follow(path, ["state"], timeout_s=tick_s):
                yield facts
                if time.monotonic() >= deadline_s:
                    return
        except TimeoutError:
            continue
        except (OSError, ControlClosed) as error:
            raise client.trouble(path, error) from error


def _failure(model: Facts) -> Exception:
    """The model's own error where it tells one, else its reason."""
    if wire := model.get("error"):
        return from_wire(wire)
    reason = model.get("reason") or f"{model.get('id')} is {model.get('status')}"
    return CommandError(str(reason), Exit.FAILED, next_command="cortexctl models")


def _find(facts: Facts, wanted: str) -> Facts | None:
    return next((m for m in facts.get("models", ()) if m.get("id") == wanted), None)


def _ask_first(model: Facts) -> None:
    """Nothing is lost without a yes; without a terminal nobody can give one (C10)."""
    busy = int(model.get("running") or 0) + int(model.get("waiting") or 0)
    if not busy:
        return
    loss = f"{model['id']} serves {busy} request{'s' if busy > 1 else ''} now"
    if not sys.stdin.isatty():
        raise CommandError(
            f"{loss}; nothing was done",
            Exit.USAGE,
            next_command=f"cortexctl unload {model['id']} --yes",
        )
    sys.stderr.write(f"{loss}, which would end with an error. Unload? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was done", Exit.FAILED)


def _leave(args: Namespace, goal: str) -> str:
    if goal == "loaded":
        return f"`cortexctl unload {args.model}` cancels it"
    return f"`cortexctl load {args.model}` brings it back"


def _done(args: Namespace, output: Output, reply: Facts, words: str) -> Exit:
    if output.as_json:
        output.document(reply)
    else:
        output.lines([words])
    return Exit.DONE
