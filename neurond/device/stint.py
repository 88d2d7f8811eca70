"""A chunk of a prompt that stops between layers, so that others decode in between.

Device process. Beside running streams small chunks would be the other way to keep them
flowing; but each of those reads all the weights, and attends to a long past at a third
of the speed. A large chunk in stints costs what it costs alone:

    step      | rows | layers 1-4 | rows | layers 5-8 | rows | …
    a gap       of a stream = its own step + one stint

Invariant: nobody reads what a chunk has written before it is done: its tokens are
booked then. A stint that raises is begun anew from the first layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from neurond.device.batch import Batch, spans_of
from neurond.device.inputs import Inputs
from neurond.device.lean import LeanForward
from neurond.device.paged import PagedCache


def can_pause(module: Any) -> bool:
    """Its layers are run one by one from here; transformers' own forward is not."""
    return isinstance(_forward(module), LeanForward)


class Stint:
    """One chunk on its way through the layers."""

    def __init__(
        self,
        module: Any,
        cache: PagedCache,
        batch: Batch,
        inputs: Inputs,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._module = module
        self._cache = cache
        self._batch = batch
        self._inputs = inputs
        self._clock = clock
        self._stages = self._begin()
        self._num_left = _forward(module).num_stages
        self.num_ids = len(batch.ids)
        self.spans = spans_of(batch)

    def go_on(self, seconds: float) -> torch.Tensor | None:
        """Layers for about so long, one at least. Logits [K, V] behind the last one."""
        started_s = self._clock()
        self._cache.begin(self._batch, self._inputs)
        try:
            while True:
                begun_s = self._clock()
                hidden = next(self._stages)
                self._num_left -= 1
                if not self._num_left:
                    kept = hidden.index_select(1, self._inputs.kept)
                    logits: torch.Tensor = self._module.lm_head(kept)
                    return logits[0]
                ended_s = self._clock()
                if 2 * ended_s - begun_s > started_s + seconds:
                    return None  # another one would take too long
        finally:
            self._cache.end()

    def _begin(self) -> Iterator[torch.Tensor]:
        ids, positions = self._inputs.ids, self._inputs.positions
        stages = _forward(self._module).stages
        return stages(ids.view(1, -1), positions.view(1, -1), self._cache)


def _forward(module: Any) -> Any:
    return getattr(getattr(module, "model", None), "forward", None)
