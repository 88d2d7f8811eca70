"""A model made ready on the CPU, and a small engine of its own around it.

No rings, no scheduler: tests say which works a forward has and where pages lie.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from collections.abc import Sequence as Listing
from typing import Any

import torch

from ipc.errors import ServiceError
from neurond.device.backend import Outcome, Resident, Row, Work
from neurond.device.computing import Computing
from neurond.device.drawing import outcomes
from neurond.device.loader import Body
from neurond.device.pagedmodel import PagedModel
from neurond.device.sampler import Sampler
from neurond.device.sequence import Sequence
from neurond.device.trial import make_ready
from neurond.device.varlen import Kernel
from tests.neurond.device.rig import make_submit

CPU = torch.device("cpu")


class Served:
    """`scattered`: pages are handed out in a random order, so that none follow."""

    def __init__(
        self,
        module: Any,
        *,
        page_tokens: int = 8,
        scattered: bool = False,
        context: int = 512,
        kernel: Kernel | None = None,
    ) -> None:
        self.model = Resident(
            "m", context, 512, frozenset(), 0, {}, Body(module, CPU, True)
        )
        self.computing = made_ready(self.model, page_tokens, kernel)
        self.sampler = Sampler(CPU)
        self.free = list(range(self.computing.spec.max_pages))
        if scattered:
            random.Random(3).shuffle(self.free)

    @property
    def paged(self) -> bool:
        return isinstance(self.computing, PagedModel)

    def start(self, ids: Iterable[int], num_tokens: int, **more: Any) -> Sequence:
        """With all the pages that it will ever need."""
        submit = make_submit(1, tuple(ids), max_tokens=num_tokens, **more)
        sequence = Sequence(1, submit, self.model, 0.0)
        count = -(-(len(sequence.ids) + num_tokens) // self.computing.spec.page_tokens)
        sequence.pages = [self.free.pop(0) for _ in range(count)]
        self.computing.clear_pages(sequence.pages)
        return sequence

    def end(self, sequence: Sequence) -> None:
        self.computing.release(sequence)
        self.free += sequence.pages

    def step(self, *planned: tuple[Sequence, int]) -> list[Outcome]:
        """One forward; tokens are appended."""
        works = [Work(sequence, count) for sequence, count in planned]
        with torch.inference_mode():
            logits = self.computing.compute(works)
            found = outcomes(works, logits, self.sampler)
        for work, outcome in zip(works, found, strict=True):
            if not isinstance(outcome, ServiceError):
                work.sequence.num_computed += work.num_ids
                if outcome.token is not None:
                    work.sequence.ids.append(outcome.token)
        return found

    def generate(
        self, prompts: Listing[Listing[int]], num_tokens: int, *, chunk: int = 64
    ) -> list[list[int]]:
        """Greedy. A prompt joins at each step, leaves when done; all that run share
        every forward."""
        waiting = [self.start(ids, num_tokens) for ids in prompts]
        everyone = list(waiting)
        running: list[Sequence] = []
        while waiting or running:
            running += [waiting.pop(0)] if waiting else []
            found = self.step(*[(s, min(s.num_pending, chunk)) for s in running])
            assert all(isinstance(outcome, Row) for outcome in found)
            for sequence in [s for s in running if s.num_emitted == num_tokens]:
                running.remove(sequence)
                self.end(sequence)
        return [s.ids[s.submit.num_prompt :] for s in everyone]


def made_ready(
    model: Resident, page_tokens: int, kernel: Kernel | None = None
) -> Computing:
    steps = make_ready(model, page_tokens, 1 << 20, kernel)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            computing: Computing = done.value
            return computing
