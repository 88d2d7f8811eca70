"""A model over a paged pool: any mix of chunks and rows in one packed forward.

Device process. Layers with recurrent states can't take packed rows: for such a model a
chunk goes alone and the rows that decode go together, one per line of the batch.

Invariant: what a forward that raises has written lies behind its sequences' computed
tokens, where nobody reads before it is written again.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Listing
from functools import partial
from typing import Any

import torch

from neurond.device import soundness
from neurond.device.backend import CacheSpec, Work
from neurond.device.batch import Batch, make_batch, spans_of
from neurond.device.computing import Logits, collect, held
from neurond.device.graphs import (
    CudaRecorder,
    DecodeGraphs,
    Recorder,
    is_capturable,
    sizes_for,
)
from neurond.device.inputs import Feed, Inputs
from neurond.device.layout import PLACEHOLDER, Layout
from neurond.device.loader import Body
from neurond.device.paged import PagedCache, PagedLayer
from neurond.device.pool import Pool
from neurond.device.recurrent import State, States
from neurond.device.sequence import Sequence
from neurond.device.stint import Stint, can_pause
from neurond.device.varlen import Kernel


class PagedModel:
    """Owns the pool, the recurrent states and, on CUDA, the captured steps."""

    def __init__(
        self, body: Body, layout: Layout, spec: CacheSpec, kernel: Kernel | None = None
    ) -> None:
        """`spec.max_pages` are for sequences; one more is for the rows that fill up a
        captured step.
        """
        self.spec = spec
        self._body = body
        self._pool = Pool(
            layout.shapes,
            spec.max_pages + 1,
            spec.page_tokens,
            layout.dtype,
            body.device,
        )
        self._states = States(layout.states, body.device)
        self._cache = PagedCache(self._pool, self._others(layout), kernel=kernel)
        self._feed = Feed(body.device, tables=kernel is not None)
        self.graphs: DecodeGraphs | None = None

    def compute(self, works: Listing[Work]) -> Logits:
        groups = self._groups(works)
        parts = [
            (group, self._compute([works[index] for index in group]))
            for group in groups
        ]
        return collect(len(works), parts)

    @property
    def can_pause(self) -> bool:
        return not self._states.layers and can_pause(self._body.module)

    def go_on(self, work: Work, seconds: float) -> Logits | None:
        mine = held(work.sequence)
        stint: Stint | None = mine.stint
        mine.stint = None  # one that raises is not gone on with
        if not self.can_pause:
            return self.compute([work])
        if stint is None or stint.num_ids != work.num_ids:
            batch = make_batch([work], self.spec.page_tokens)
            inputs = self._feed.inputs(batch)
            stint = Stint(self._body.module, self._cache, batch, inputs)
        rows = stint.go_on(seconds)
        if rows is None:
            mine.stint = stint
            return None
        return Logits(rows, stint.spans)

    def capture(
        self, recorder: Recorder, max_rows: int, context: int
    ) -> Iterator[tuple[int, int]]:
        """Capture decode steps; yields (done, total)."""
        size = self.spec.page_tokens
        sizes = sizes_for(max_rows, context, size, self.spec.max_pages)
        graphs = DecodeGraphs(recorder, size, spare_page=self.spec.max_pages)
        run = partial(self.run, in_lines=False)
        for done, _ in enumerate(graphs.capture(run, sizes, self._body.device), 1):
            yield done, len(sizes)
        self.graphs = graphs

    def cuda_recorder(self) -> Recorder | None:
        """None where steps can't be captured."""
        groups = [
            layer for layer in self._cache.layers if isinstance(layer, PagedLayer)
        ]
        if self._states.layers or not all(layer.uses_kernel for layer in groups):
            return None
        return (
            CudaRecorder(self._feed.upload)
            if is_capturable(self._body.module)
            else None
        )

    def unsound(self, works: Listing[Work]) -> list[int]:
        return soundness.unsound(self._pool, works)

    def release(self, sequence: Sequence) -> None:
        if self._states.layers and held(sequence).slot >= 0:
            self._states.give(held(sequence).slot)

    def clear_pages(self, pages: Listing[int]) -> None:
        self._pool.clear(pages)

    def copy_page(self, source: int, target: int, num_tokens: int) -> None:
        self._pool.copy(source, target, num_tokens)

    def save_state(self, sequence: Sequence) -> State:
        """Valid for the sequence's `num_computed`, and for no other length."""
        return self._states.save(self._slot(sequence))

    def load_state(self, sequence: Sequence, state: State) -> None:
        self._states.load(self._slot(sequence), state)

    def run(self, batch: Batch, inputs: Inputs, *, in_lines: bool) -> torch.Tensor:
        """Logits [K, V] of the kept rows. `in_lines`: [B, 1] instead of [1, N]."""
        shape = (-1, 1) if in_lines else (1, -1)
        more = {"logits_to_keep": inputs.kept} if self._body.last_only else {}
        self._cache.begin(batch, inputs)
        try:
            output = self._body.module(
                input_ids=inputs.ids.view(shape),
                position_ids=inputs.positions.view(shape),
                past_key_values=self._cache,
                use_cache=True,
                **({} if in_lines else more),
            )
        finally:
            self._cache.end()
        logits = output.logits.flatten(0, 1)
        whole = in_lines or not self._body.last_only
        return logits.index_select(0, inputs.kept) if whole else logits

    @property
    def states(self) -> States:
        return self._states

    def slot_of(self, sequence: Sequence) -> int:
        """Of its recurrent state."""
        return self._slot(sequence)

    def run_tile(self, batch: Batch, slots: Listing[int]) -> torch.Tensor:
        """Logits [K, V] of a batch of single ids.

        `slots` are those of their recurrent states, if the model has any: all have
        begun, be it from zeros.
        """
        inputs = self._feed.inputs(batch)
        if not self._states.layers:
            return self.run(batch, inputs, in_lines=False)
        self._states.begin(slots, started=True)
        rows = self.run(batch, inputs, in_lines=True)
        self._states.commit(slots)
        return rows

    def _compute(self, works: Listing[Work]) -> Logits:
        batch = make_batch(works, self.spec.page_tokens)
        if self._states.layers:
            return self._compute_states(works, batch)
        if self.graphs is not None and self.graphs.fits(batch):
            return Logits(self.graphs.run(batch), spans_of(batch))
        rows = self.run(batch, self._feed.inputs(batch), in_lines=False)
        return Logits(rows, spans_of(batch))

    def _compute_states(self, works: Listing[Work], batch: Batch) -> Logits:
        """One chunk, or rows that have all begun."""
        slots = [self._slot(works[s.work].sequence) for s in batch.segments]
        self._states.begin(slots, started=batch.segments[0].past > 0)
        in_lines = batch.num_rows == len(works)
        rows = self.run(batch, self._feed.inputs(batch), in_lines=in_lines)
        self._states.commit(slots)
        return Logits(rows, spans_of(batch))

    def _groups(self, works: Listing[Work]) -> list[list[int]]:
        """Which works share a forward, as indices."""
        everything = list(range(len(works)))
        if not self._states.layers:
            return [everything]
        rows = [
            i
            for i in everything
            if works[i].num_ids == 1 and works[i].sequence.num_computed > 0
        ]
        alone = [[i] for i in everything if i not in rows]
        return [*alone, rows] if rows else alone

    def _slot(self, sequence: Sequence) -> int:
        mine = held(sequence)
        if mine.slot < 0:
            mine.slot = self._states.take()
        return mine.slot

    def _others(self, layout: Layout) -> dict[int, Any]:
        """Cache layers without KV: with a state, or with nothing."""
        others: dict[int, Any] = dict(self._states.layers)
        for index, (shape, state) in enumerate(
            zip(layout.shapes, layout.states, strict=True)
        ):
            if shape is None and state is None:
                others[index] = PLACEHOLDER()
        return others
