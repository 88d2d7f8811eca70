"""Soak: random traffic through a real gateway and node, and proof that nothing is lost.

    python -m tests.drills.soak --seed 1 --seconds 1800 --model embedded

Requests arrive at random (Poisson, the rate changes), of every length and kind:
streams and whole answers, grammars, n, logprobs, stop strings, seeds, second turns,
completions, embeddings, oversize prompts, mistakes. Clients leave at random moments:
while queued, while the prompt is computed, while tokens come. Again and again everybody
goes, and what is held then must not grow. `judge` says what a request may come to,
`standing` what a leak is.

    fake        the fake device: the protocol, fast
    tiny        random weights in float32, small enough for a core's cache
    embedded    the embedded model and the embedded embedder, as they are shipped

Requests that are greedy or have a seed are asked again at random times. Their answer
must be the same to the last bit on the fake device and with --numerics invariant; in
float32 it may be another one where two tokens are as good as equal; in bfloat16 how
often it was is only told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.drills.caller import Answer, Leave, call
from tests.drills.judge import Wrong, cached_tokens, difference, judge, text_of
from tests.drills.stacks import Stack, start
from tests.drills.standing import Standing, growth_bytes, leaks, settle
from tests.drills.traffic import Ask, Traffic

MOST_OPEN = 96
_PHASE_S = 10.0
_LEAST_POINTS = 3  # of fewer nobody can say what grows
_LEAVE_SHARE = 0.2
_RATES = (0.4, 1.0, 1.0, 3.0)
_SCORE_TOLERANCE = 1e-3


@dataclass
class Outcome:
    """What a soak saw; `bad` must be empty."""

    seed: int
    alike: float = 1.0
    seconds: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    again: int = 0
    hits: int = 0
    others: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    points: list[Standing] = field(default_factory=list)

    @property
    def bad(self) -> list[str]:
        few_enough = len(self.others) <= (1.0 - self.alike) * self.again
        others = [] if few_enough else self.others
        return self.violations + others + (leaks(self.points) if self.points else [])

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {end}" for end, count in self.ends.most_common())
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        return (
            f"seed {self.seed}, {self.seconds:.0f} s, {self.ends.total()} requests"
            f" ({kinds}): {ends}; {self.again} asked again,"
            f" {len(self.others)} of them answered otherwise; {self.hits} prefix hits;"
            f" {len(self.points)} times at rest\n{_table(self.points)}\n"
            f"violations: {len(self.bad) or 'none'}"
        )


def _table(points: list[Standing]) -> str:
    """Of each process: memory at the end and how it grew, descriptors, threads."""
    if not points:
        return ""
    lines = []
    for name, last in sorted(points[-1].holdings.items()):
        held = [p.holdings[name] for p in points if name in p.holdings]
        lines.append(
            f"  {name:<42} {last.rss_bytes >> 20:>6} MiB"
            f" {growth_bytes(held) / (1 << 20):>+6.1f}"
            f"  fds {held[0].fds}->{last.fds}"
            f"  threads {held[0].threads}->{last.threads}"
            f"  connections {last.connections}"
        )
    return "\n".join(lines)


class Soak:
    """Owns the clients; `run` returns when all have gone for good."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self._stack = stack
        self._rng = random.Random(seed)
        self._traffic = Traffic(stack.profile, random.Random(seed + 1))
        self._open: set[asyncio.Task[None]] = set()
        self.outcome = Outcome(seed, stack.profile.alike)

    async def run(self, seconds: float, phase_s: float) -> Outcome:
        begun_s = time.monotonic()
        points = self.outcome.points
        left_s = seconds
        while left_s > 0 or len(points) < _LEAST_POINTS:
            await self._phase(min(left_s, phase_s) if left_s > 0 else phase_s)
            points.append(settle(self._stack.node, self._stack.daemons))
            left_s = begun_s + seconds - time.monotonic()
        self.outcome.seconds = time.monotonic() - begun_s
        return self.outcome

    async def _phase(self, seconds: float) -> None:
        """Arrivals for so long; then everyone is waited for."""
        end_s = time.monotonic() + seconds
        rate = self._stack.profile.rate * self._rng.choice(_RATES)
        while time.monotonic() < end_s:
            await asyncio.sleep(self._rng.expovariate(rate))
            if len(self._open) < MOST_OPEN:
                task = asyncio.create_task(self._client())
                self._open.add(task)
                task.add_done_callback(self._open.discard)
        while self._open:
            await asyncio.wait(self._open)

    async def _client(self) -> None:
        ask = self._traffic.next()
        leave = self._leaving()
        try:
            answer = await call(*self._stack.address, ask, leave)
            end, outcome = judge(ask, answer, obeys=self._stack.profile.obeys)
        except Wrong as wrong:
            self._violation(ask, str(wrong))
        except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
            self._violation(ask, f"no answer: {error!r}")
        else:
            self._book(ask, answer, end, outcome)

    def _leaving(self) -> Leave:
        rng = self._rng
        if rng.random() >= _LEAVE_SHARE:
            return Leave()
        if rng.random() < 0.5:
            return Leave(after_events=rng.randrange(12))
        return Leave(after_s=rng.expovariate(1 / 0.1))

    def _book(self, ask: Ask, answer: Answer, end: str, outcome: Any) -> None:
        self.outcome.ends[end] += 1
        self.outcome.kinds[ask.kind] += 1
        if end != "complete":
            return
        self.outcome.hits += cached_tokens(ask, answer) > 0
        if ask.before is not None:
            self._compare(ask, outcome)
        self._traffic.learn(ask, outcome, text_of(outcome))

    def _compare(self, ask: Ask, outcome: Any) -> None:
        is_exact = self._stack.profile.alike == 1.0
        self.outcome.again += 1
        parts = difference(ask.before, outcome, 0.0 if is_exact else _SCORE_TOLERANCE)
        if parts:
            self.outcome.others.append(_told(ask, parts))

    def _violation(self, ask: Ask, what: str) -> None:
        self.outcome.ends["violation"] += 1
        self.outcome.violations.append(_told(ask, what))


def _told(ask: Ask, what: str) -> str:
    body = ask.body if isinstance(ask.body, bytes) else json.dumps(ask.body)
    return f"{ask.kind}: {what[:600]}\n    POST {ask.path} {body[:600]!s}"


def soak(
    way: str, seed: int, seconds: float, folder: Path, phase_s: float = _PHASE_S
) -> Outcome:
    """`way` is the model, "tiny/invariant" for other numerics than the usual."""
    model, _, numerics = way.partition("/")
    with start(model, folder, numerics or "fast") as stack:
        return asyncio.run(Soak(stack, seed).run(seconds, phase_s))


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cortex-soak-") as name:
        yield Path(name)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills.soak")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model", choices=("fake", "tiny", "embedded"), default="tiny")
    parser.add_argument("--numerics", choices=("fast", "invariant"), default="fast")
    options = parser.parse_args()
    way = f"{options.model}/{options.numerics}"
    with _folder() as folder:
        outcome = soak(way, options.seed, options.seconds, folder)
    print(f"{way}: {outcome}")
    for violation in outcome.bad[:20]:
        print(f"  {violation}")
    if outcome.bad:
        again = f"--model {options.model} --numerics {options.numerics}"
        again += f" --seed {options.seed} --seconds {options.seconds:g}"
        print(f"again: python -m tests.drills.soak {again}")
    return 1 if outcome.bad else 0


if __name__ == "__main__":
    sys.exit(main())
