"""The verb drill: faults on order against a live node, and streams that must survive.

Used by cortexctl; the one verb that also speaks HTTP. It asks a few requests in peace,
then again while a fault of each kind happens to their device. Every stream must come
whole; where the node's numerics are invariant, equal to the one in peace, too.

Invariant: only kinds that cost nobody a stream are ordered, one at a time, and the next
one when the device serves again.
"""

from __future__ import annotations

import os
import random
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cortexd.ctl import client
from cortexd.ctl.drillclient import Caller, Told, requests
from cortexd.ctl.exits import CommandError, Exit
from cortexd.ctl.output import Output
from cortexd.ctl.table import Column, layout
from cortexd.ctl.units import span

Facts = dict[str, Any]
LASTING = (
    "device_assert",
    "illegal_access",
    "launch_failure",
    "ecc",
    "nvlink",
    "sigkill",
    "segv",
    "abort",
    "wrong_result",
)
"""Kinds that end a device's process, and by which no request may be harmed."""

KINDS = ("slow", *LASTING)
MORE = ("hang",)
"""Takes as long as a step's deadline, so only where it is asked for."""

TOKEN = "NEURON_NODE__TOKEN"
_POLL_S = 0.05
_PARTS = ("detect_s", "memory_s", "respawn_s", "reload_s", "first_token_s")


@dataclass(frozen=True, slots=True)
class Round:
    """One kind of fault: what came of the streams, and how long the device was away."""

    kind: str
    streams: int
    whole: int
    equal: int
    happened: bool
    recovery: dict[str, float | None] = field(default_factory=dict)
    troubles: tuple[str, ...] = ()


def drill(args: Namespace, output: Output) -> Exit:
    """Raises CommandError, ServiceError."""
    path = client.node_socket(args.socket)
    kinds = _kinds(args.kinds)
    if not client.ask(path, "faults")["injection"]:
        raise CommandError(
            "faults are simulated only where [faults] injection is true",
            Exit.NOT_ALLOWED,
        )
    is_exact = client.ask(path, "settings")["engine"]["numerics"] == "invariant"
    output.say(f"{len(kinds)} faults, {args.streams} streams each; others may notice")
    rounds = list(_rounds(path, args, kinds))
    bad = [one for one in rounds if is_bad(one, is_exact=is_exact)]
    if output.as_json:
        output.document({"ok": not bad, "rounds": [asdict(one) for one in rounds]})
    else:
        _show(rounds, output, is_exact=is_exact)
    return Exit.FAILED if bad else Exit.DONE


def is_bad(one: Round, *, is_exact: bool) -> bool:
    """Fast numerics may go another way after a pause; a cut stream is never right."""
    differs = is_exact and one.equal < one.streams
    return one.whole < one.streams or differs or not one.happened


def _kinds(told: str | None) -> tuple[str, ...]:
    kinds = tuple(told.split(",")) if told else KINDS
    for kind in kinds:
        if kind not in (*KINDS, *MORE):
            raise CommandError(
                f"{kind} is no kind for a drill: it would cost a request",
                Exit.USAGE,
                next_command=f"cortexctl drill --kinds {','.join(KINDS)}",
            )
    return kinds


def _rounds(path: Path, args: Namespace, kinds: tuple[str, ...]) -> Iterator[Round]:
    facts = client.ask(path, "status")
    model = _model(facts, args.model)
    caller = Caller(facts["listen"]["http"], os.environ.get(TOKEN, ""))
    asked = requests(model["id"], args.streams)
    peace = caller.ask_all(asked)
    if any(told.trouble for told in peace):
        words = next(told.trouble for told in peace if told.trouble)
        raise CommandError(f"it fails without a fault: {words}", Exit.FAILED)
    rng = random.Random(args.seed)
    for kind in kinds:
        before = _device(path, model["id"], args.timeout)
        _order(path, before["device"], kind, rng.randint(3, 20))
        told = caller.ask_all(asked)
        after = _device(path, model["id"], args.timeout)
        yield _round(kind, peace, told, before, after)


def _round(
    kind: str, peace: list[Told], told: list[Told], before: Facts, after: Facts
) -> Round:
    lives = after["generation"] - before["generation"]
    wanted = 0 if kind == "slow" else 2 if kind == "wrong_result" else 1
    pairs = zip(peace, told, strict=True)
    return Round(
        kind,
        streams=len(told),
        whole=sum(not one.trouble for one in told),
        equal=sum(now == then for then, now in pairs),
        happened=lives >= wanted,
        recovery=(after.get("recovery") or {}) if wanted else {},
        troubles=tuple(one.trouble for one in told if one.trouble),
    )


def _order(path: Path, device: str, kind: str, at_step: int) -> None:
    if kind == "wrong_result":  # of the load that follows a death
        client.ask(path, "inject", {"device": device, "kind": kind})
        kind = "sigkill"
    order = {"device": device, "kind": kind, "at_step": at_step}
    client.ask(path, "inject", order)


def _model(facts: Facts, wanted: str | None) -> Facts:
    """The one asked for, else the first that chats and is there."""
    for model in facts["models"]:
        is_there = model["status"] == "loaded" and model["capabilities"]["chat"]
        if is_there and wanted in (None, model["id"]):
            return dict(model)
    raise CommandError(
        f"{wanted or 'no chat model'} is not loaded here",
        Exit.NOT_FOUND,
        next_command="cortexctl models",
    )


def _device(path: Path, model: str, timeout_s: float) -> Facts:
    """The model's device, once it serves. Raises CommandError when it doesn't."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        facts = client.ask(path, "status")
        record: Facts = next((m for m in facts["models"] if m["id"] == model), {})
        held = record.get("devices", ()) if record.get("status") == "loaded" else ()
        for device in facts["devices"]:
            if device["device"] in held and device["state"] == "ready":
                return dict(device)
        time.sleep(_POLL_S)
    raise CommandError(
        f"no device serves {model} after {span(timeout_s)}",
        Exit.TIMED_OUT,
        next_command="cortexctl events",
    )


def _show(rounds: list[Round], output: Output, *, is_exact: bool) -> None:
    titles = (part.removesuffix("_s").replace("_", " ").upper() for part in _PARTS)
    columns = [
        Column("FAULT"),
        *(Column(name, right=True) for name in ("WHOLE", "EQUAL", *titles)),
    ]
    rows = [_row(one) for one in rounds]
    screen = output.screen
    output.lines(layout(columns, rows, width=screen.width, paint=screen.paint))
    for one in rounds:
        if not one.happened:
            output.say(f"{one.kind}: it did not happen")
        for trouble in one.troubles:
            output.say(f"{one.kind}: {trouble}")
    if not is_exact:
        output.say("numerics are fast: an equal text is likely, not promised")


def _row(one: Round) -> tuple[str, ...]:
    counts = (f"{number}/{one.streams}" for number in (one.whole, one.equal))
    return (one.kind, *counts, *(_ms(one.recovery.get(part)) for part in _PARTS))


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.0f} ms"
