"""Drill of faults: a node and a gateway are broken in every way while clients talk.

    python -m tests.drills.chaos --seed 1                       all, at full length
    python -m tests.drills.chaos --mode kills --model tiny --count 100

`ledger` proves that nothing is lost, repeated or mixed: each request is answered as it
is in peace, or was ended by a fault that had to. `breaker` has the blows:

    kills      SIGKILL of the device at random tokens
    stops      SIGSTOP of it
    again      SIGKILL, and again while it comes back
    workers    SIGKILL of a front-end worker
    faults     each kind of `cortexctl fault list`, and all of the above, in turn

Meanwhile /health is asked all the time. At the start, at the end and between, everyone
rests, and what the processes hold must not grow. Then the node ends in order, leaves
nothing behind and starts again.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from ipc.errors import ServiceError
from tests.drills.asks import catalogue
from tests.drills.breaker import PARTS, ROUND, Blow, Breaker
from tests.drills.ledger import Books, Ledger
from tests.drills.pulse import Beats, Pulse
from tests.drills.stacks import Stack, start
from tests.drills.standing import Standing, leaks, take

HEALTH_S = 0.05
_PROMPT_SHARE = 0.95
"""Of all health answers; the rest may meet a core that has something else to do."""

_CLIENTS = 8
_REST_S = 15.0
_RESTS = 6
_MOST_CHARS = 2000
_KEPT = ("supervisor", "frontend", "metrics", "nvml", "fleet", "cortexd: worker")
_UNHURT = ("neurond: worker", "zygote")
"""Those that a drill leaves alone, and those that most leave alone."""

_TOKENS = {"fake": 40, "tiny": 40, "embedded": 24}
_DEADLINE_S = {"fake": 0.5, "tiny": 2.0, "embedded": 4.0}


@dataclass(frozen=True, slots=True)
class Order:
    """One drill: `count` blows of a mode against a model, fewer if time is up."""

    mode: str
    model: str
    numerics: str
    count: int
    seconds: float = math.inf

    def __str__(self) -> str:
        return f"{self.mode}, {self.model}, {self.numerics}"


FULL = (
    Order("kills", "tiny", "invariant", 900),
    Order("kills", "embedded", "invariant", 100),
    Order("kills", "tiny", "fast", 100),
    Order("stops", "tiny", "invariant", 200),
    Order("again", "tiny", "invariant", 200),
    Order("workers", "tiny", "invariant", 50),
    Order("faults", "tiny", "invariant", 10 * len(ROUND)),
    Order("faults", "embedded", "invariant", len(ROUND)),
)
_ONE: dict[str, Blow] = {
    "kills": Breaker.kill,
    "stops": Breaker.stop,
    "again": Breaker.kill_again,
    "workers": Breaker.kill_worker,
}
MODES = (*_ONE, "faults")


@dataclass
class Outcome:
    """What a drill saw; `bad` must be empty."""

    order: Order
    books: Books = field(default_factory=Books)
    blows: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    recoveries: list[dict[str, float]] = field(default_factory=list)
    points: list[Standing] = field(default_factory=list)
    beats: Beats = Beats((), 0)
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def bad(self) -> list[str]:
        late = self.beats.quantile_s(_PROMPT_SHARE)
        slow = [f"health took {late:.3f} s"] if late > HEALTH_S else []
        grown = leaks(self.points) if self.points else []
        return self.books.bad + self.failures + grown + slow

    def median_ms(self, part: str) -> float:
        return statistics.median([r[part] for r in self.recoveries] or [0.0]) * 1e3

    def __str__(self) -> str:
        parts = ", ".join(
            f"{part.removesuffix('_s').replace('_', ' ')} {self.median_ms(part):.0f}"
            for part in PARTS
        )
        blows = ", ".join(f"{n} {name}" for name, n in self.blows.most_common())
        phases = ", ".join(f"{n} in {name}" for name, n in self.phases.most_common())
        return (
            f"{self.order}: {self.seconds:.0f} s, {blows} ({phases})\n"
            f"  {self.books}\n"
            f"  {len(self.recoveries)} recoveries, medians in ms: {parts}\n"
            f"  {self.beats}; {len(self.points)} times at rest\n"
            f"  wrong: {len(self.bad) or 'none'}"
        )


class Drill:
    def __init__(self, stack: Stack, order: Order, seed: int) -> None:
        self._stack = stack
        self._order = order
        self._seed = seed
        asks = catalogue(stack.profile, _TOKENS[order.model])
        is_hurt = order.mode in ("workers", "faults")
        self._kept = _KEPT if is_hurt else (*_KEPT, *_UNHURT)
        is_exact = order.numerics == "invariant" or order.model == "fake"
        self._end_s = 0.0
        self._ledger = Ledger(stack.address, asks, is_exact=is_exact)
        self._breaker = Breaker(stack.node, self._ledger, random.Random(seed))
        self._outcome = Outcome(order, self._ledger.books)

    async def run(self, rests: int) -> Outcome:
        """In so many parts, with a rest before, between and behind them."""
        begun_s = time.monotonic()
        self._end_s = begun_s
        await self._ledger.rehearse(obeys=self._stack.profile.obeys)
        blows = self._blows()
        for part in range(rests):
            self._end_s += self._order.seconds / rests
            await self._part(blows[part::rests], self._seed * 1000 + part)
            point = await asyncio.to_thread(rest, self._stack, self._kept)
            self._outcome.points.append(point)
        self._outcome.seconds = time.monotonic() - begun_s
        self._outcome.blows = self._breaker.blows
        self._outcome.phases = self._breaker.phases
        self._outcome.recoveries = self._breaker.recoveries
        return self._outcome

    def _blows(self) -> list[Blow]:
        count = self._order.count
        if self._order.mode in _ONE:
            return [_ONE[self._order.mode]] * count
        rng = random.Random(self._seed)
        rounds = -(-count // len(ROUND))
        turns = [rng.sample(ROUND, len(ROUND)) for _ in range(rounds)]
        return [blow for turn in turns for blow in turn][:count]

    async def _part(self, blows: list[Blow], seed: int) -> None:
        working = asyncio.create_task(self._ledger.work(_CLIENTS, seed))
        try:
            for blow in blows:
                if time.monotonic() > self._end_s:
                    break
                await asyncio.to_thread(blow, self._breaker)
                print(f"{time.strftime('%X')} {self._breaker.last}", file=sys.stderr)
        except (AssertionError, ServiceError, LookupError, psutil.Error) as error:
            self._outcome.failures.append(repr(error))
        finally:
            self._ledger.stop()
            await working


def rest(stack: Stack, kept: tuple[str, ...]) -> Standing:
    """When nobody asks any more; what processes with these titles hold then."""
    end_s = time.monotonic() + _REST_S
    while (busy := _busy(stack)) and time.monotonic() < end_s:
        time.sleep(0.05)
    time.sleep(0.2)  # connections that are closed one after the other
    seen = take(stack.daemons, stack.node.control("metrics"))
    holdings = {
        name: held
        for name, held in seen.holdings.items()
        if any(word in name for word in kept)
    }
    return replace(seen, holdings=holdings, generations=(), busy=busy)


def _busy(stack: Stack) -> str:
    facts = stack.node.facts()
    away = [d["device"] for d in facts["devices"] if d["state"] != "ready"]
    gauges = ("running", "waiting")
    held = [f"{name} {d[name]}" for d in facts["devices"] for name in gauges if d[name]]
    return "; ".join([*away, *held])


def drill(order: Order, seed: int, folder: Path, rests: int = _RESTS) -> Outcome:
    """With one rest there is nothing to compare, and the node isn't started again."""
    more = {
        "node": {"workers": 2 if order.mode in ("workers", "faults") else 1},
        "faults": {"injection": True, "probe_every_s": 1.0},
        "engine": {"kv_bytes": (96 if order.model == "embedded" else 8) << 20},
        "limits": {
            "decode_deadline_s": _DEADLINE_S[order.model],
            "prefill_deadline_s": _DEADLINE_S[order.model],
        },
    }
    with start(order.model, folder, order.numerics, more) as stack:
        gateway = "{}:{}".format(*stack.address)
        node = stack.node.http.url.removeprefix("http://")
        with Pulse(gateway, node) as pulse:
            outcome = asyncio.run(Drill(stack, order, seed).run(rests))
            outcome.beats = pulse.beats()
    if rests > 1:
        _restart(stack, outcome)
    return outcome


def _restart(stack: Stack, outcome: Outcome) -> None:
    """What ended in order starts again, with nothing in its way."""
    try:
        stack.node.start()
        stack.node.wait(lambda: _is_loaded(stack), "its models are away", 90.0)
        stack.node.stop()
    except AssertionError as error:
        outcome.failures.append(f"it does not start again: {error}")
    finally:
        stack.node.sweep()


def _is_loaded(stack: Stack) -> bool:
    facts = stack.node.facts()
    loaded = {m["id"] for m in facts["models"] if m["status"] == "loaded"}
    wanted = {stack.profile.model, stack.profile.vectors}
    return facts["state"] == "ready" and wanted <= loaded


def _orders(options: argparse.Namespace) -> tuple[Order, ...]:
    if not options.mode:
        return FULL
    what = (options.mode, options.model, options.numerics, options.count)
    return (Order(*what, options.seconds),)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills.chaos")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mode", choices=MODES, help="default: all, at full length")
    parser.add_argument("--model", choices=tuple(_TOKENS), default="tiny")
    parser.add_argument(
        "--numerics", choices=("fast", "invariant"), default="invariant"
    )
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=math.inf)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and leave nothing behind
    is_bad = False
    for order in _orders(options):
        with tempfile.TemporaryDirectory(prefix="cortex-chaos-") as folder:
            outcome = drill(order, options.seed, Path(folder))
        print(outcome, flush=True)
        for violation in outcome.bad[:20]:
            print(f"  {violation[:_MOST_CHARS]}", flush=True)
        if outcome.bad:
            is_bad = True
            print(f"again: python -m tests.drills.chaos {_again(order, options.seed)}")
    return 1 if is_bad else 0


def _again(order: Order, seed: int) -> str:
    what = f"--mode {order.mode} --model {order.model} --numerics {order.numerics}"
    return f"{what} --count {order.count} --seed {seed}"


if __name__ == "__main__":
    sys.exit(main())
