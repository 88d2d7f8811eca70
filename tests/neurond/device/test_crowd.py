"""Random arrivals, cancels and faults, several principals and models, little memory.

The simulated backend checks at every forward that each page holds what its sequence
reads, so no shared page is ever written.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from ipc.messages import Accepted, Failed, Finished, Sampling
from neurond.device.fakescript import IM_END
from tests.neurond.device.rig import chat_ids
from tests.neurond.device.simulated import Simulation

NUM_REQUESTS = 60
SYSTEMS = [[7] * 30, [*range(40, 90), IM_END, 8], [9, IM_END, 10], [*range(90)] * 2]
MODELS: dict[str, dict[str, Any]] = {
    "m": {"page_tokens": 8, "page_bytes": 64, "pages": 40, "pauses": 1},
    "recurrent": {"page_tokens": 16, "page_bytes": 64, "state_bytes": 100},
    "private": {"page_tokens": 8, "page_bytes": 32, "shares": False},
}


class Crowd:
    """Everything from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.limit_bytes = 40 * 64
        settings = {
            "max_running": self.random.choice((2, 5, 16)),
            "max_queue": 200,
            "prefill_chunk": self.random.choice((5, 32, 200)),
            "kv_bytes": self.limit_bytes,
            "queue_deadline_s": 1e9,
        }
        self.host = Simulation(settings, step_ms=5, token_ms=0.1, **MODELS["m"])
        for name in ("recurrent", "private"):
            self.host.load(name, step_ms=5, token_ms=0.1, **MODELS[name])
        self.wanted: dict[int, int] = {}
        self.cancelled: set[int] = set()
        self.texts = [list(system) for system in SYSTEMS]

    def run(self) -> None:
        for request in range(NUM_REQUESTS):
            self._ask(request)
            self._steps(self.random.choice((0, 0, 1, 7)))
            if self.random.random() < 0.15:
                self._cancel(self.random.randrange(request + 1))
        self.host.drain()

    def _ask(self, request: int) -> None:
        draw = self.random
        max_tokens = draw.randint(1, 60)
        ids = [
            *draw.choice(self.texts),
            *draw.choices(range(250), k=draw.randint(1, 30)),
        ]
        if draw.random() < 0.1:
            fault = draw.choice(("nan", "oom", "shape"))
            ids = list(chat_ids(f"[[fake tokens=60 fault={fault} at=4]]"))
        elif draw.random() < 0.4:
            self.texts.append(ids)
        scores = 0 if draw.random() < 0.1 else -1
        answer = self.host.ask(
            request,
            ids,
            model=draw.choice(list(MODELS)),
            max_tokens=max_tokens,
            principal=draw.choice("abc"),
            priority=draw.choice((50, 100)),
            cache_salt=draw.choice(("", "", "salt")),
            sampling=Sampling(prompt_logprobs=scores),
        )
        assert isinstance(answer, Accepted), answer
        self.wanted[request] = max_tokens

    def _steps(self, count: int) -> None:
        for _ in range(count):
            self.host.step()
            assert self.host.gauge("kv_used_bytes") <= self.limit_bytes

    def _cancel(self, request: int) -> None:
        if self.host.ended(request) is None:
            self.host.engine.cancel(1, request)
            self.cancelled.add(request)


@pytest.mark.parametrize("seed", range(8))
def test_everybody_is_served_once_and_nothing_leaks(seed: int) -> None:
    crowd = Crowd(seed)
    host = crowd.host
    crowd.run()
    ends = Counter(m.id for m in host.messages if isinstance(m, Finished | Failed))
    assert set(ends.values()) == {1}
    assert set(ends) == set(crowd.wanted) - crowd.cancelled
    for request, max_tokens in crowd.wanted.items():
        end = host.ended(request)
        if isinstance(end, Finished):
            assert end.reason in {"length", "stop"}
            assert end.num_emitted == len(host.ids(request)) <= max_tokens
        elif isinstance(end, Failed):
            assert end.error[0] in {"nan_logits", "insufficient_vram", "internal_error"}
    counts = host.page.read().counters
    assert (
        counts["requests_total"]
        == NUM_REQUESTS
        == sum(
            counts[f"requests_{way}_total"]
            for way in ("finished", "failed", "cancelled")
        )
    )
    host.check_nothing_is_held()


def test_the_crowds_meet_what_they_are_meant_to_meet() -> None:
    crowds = [Crowd(seed) for seed in range(3)]
    for crowd in crowds:
        crowd.run()
    for counter in ("preempted_total", "cached_tokens_total", "nan_total"):
        assert sum(crowd.host.counter(counter) for crowd in crowds) > 0, counter
    backends = [crowd.host.backend for crowd in crowds]
    assert any(backend.copies for backend in backends)
    assert all(backend.num_paused for backend in backends)
