"""The pool as a cache that transformers' models use unchanged.

Device process. A layer's `update` writes the new keys and values into the pool and
returns itself twice; what arrives at the registered attention function in place of keys
is then the layer, which knows the forward's segments:

    module ── update(k, v) ──> PagedLayer.write ──> (layer, layer)
    module ── attention(q, layer, layer) ──> PagedLayer.attend

A model that does anything else with its keys fails in its trial run and is served with
caches of its own (`private`). No mask function is registered with the name, so that
transformers builds no masks at all.

Invariant: `begin` comes before each forward, `end` behind it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from neurond.device import attention, varlen
from neurond.device.attention import KeyValue
from neurond.device.batch import PADDING, Batch, Segment
from neurond.device.inputs import Inputs
from neurond.device.pool import Group, Pool
from neurond.device.reads import GroupReads, group_reads

NAME = "cortex_paged"


class PagedCache(Cache):  # type: ignore[misc]  # untyped
    """All layers of one model. `others` are cache layers of another kind, by index."""

    def __init__(
        self, pool: Pool, others: dict[int, Any], *, kernel: varlen.Kernel | None
    ) -> None:
        self.batch = Batch((), 0, [], [], [], [])
        nothing = torch.empty(0)
        self.inputs = Inputs(nothing, nothing, nothing, nothing)
        self.kernel = kernel
        self._reads: dict[int, GroupReads] = {}
        layers = [
            PagedLayer(self, *place) if place else others[index]
            for index, place in enumerate(pool.place)
        ]
        super().__init__(layers=layers)

    def begin(self, batch: Batch, inputs: Inputs) -> None:
        self.batch = batch
        self.inputs = inputs
        self._reads = {}

    def end(self) -> None:
        """Let go of the forward's tensors."""
        self._reads = {}
        for layer in self.layers:
            if isinstance(layer, PagedLayer):
                layer.fresh = None

    def reads(self, group: Group) -> GroupReads:
        reads = self._reads.get(id(group))
        if reads is None:
            reads = self._reads[id(group)] = group_reads(self.batch, group)
        return reads

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        return self.layers[layer_idx].update(key_states, value_states)


class PagedLayer(CacheLayerMixin):  # type: ignore[misc]  # untyped
    """One attention layer. Packed: [1, H, N, D]; rows in lines: [N, H, 1, D]."""

    is_compileable = False

    def __init__(self, cache: PagedCache, group: Group, index: int) -> None:
        super().__init__()
        self.is_initialized = True
        self.is_sliding = group.shape.window > 0
        self.group = group
        self.index = index
        self.keys = group.keys[index]
        self.values = group.values[index]
        self.fresh: KeyValue | None = None
        self._cache = cache
        kernel = cache.kernel
        self._kernel = (
            kernel if kernel and kernel.takes(group, self.keys.dtype) else None
        )
        same_dims = group.shape.key_dim == group.shape.value_dim
        self._plain = same_dims and self.keys.device.type == "cpu"

    @property
    def uses_kernel(self) -> bool:
        """Whether its attention is one call for any mix of works."""
        return self._kernel is not None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[PagedLayer, PagedLayer]:
        """Write the new tokens' keys and values. Returns the layer for `attend`."""
        if key_states.shape[0] > 1:
            key_states = key_states.transpose(0, 2)
            value_states = value_states.transpose(0, 2)
        self.fresh = key_states, value_states
        write = self._reads().write if self._kernel is None else None
        if write is not None:
            write[0][self.index].copy_(key_states)
            write[1][self.index].copy_(value_states)
        else:
            slots = self._cache.inputs.slots
            self.keys.index_copy_(2, slots, key_states)
            self.values.index_copy_(2, slots, value_states)
        return self, self

    def attend(
        self,
        query: torch.Tensor,
        scale: float | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """[1, H, N, D] (or [N, H, 1, D]) to [1, N, H, D_v] (or [N, 1, H, D_v])."""
        rows_only = query.shape[0] > 1
        if rows_only:
            query = query.transpose(0, 2)
        if self._kernel is not None and not softcap:
            seen = self._kernel.attend(self._cache.inputs, self, query, scale, sinks)
        else:
            seen = self._attend_each(query, scale, softcap, sinks)
        heads, length = query.shape[1:3]
        return seen.reshape(
            (length, 1, heads, -1) if rows_only else (1, length, heads, -1)
        )

    def _attend_each(
        self,
        query: torch.Tensor,
        scale: float | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """A call per segment; [N, H_kv, G, D_v]."""
        batch = self._cache.batch
        heads, dim = query.shape[1], query.shape[3]
        num_kv = self.group.shape.num_heads
        shape = (num_kv, heads // num_kv)
        if sinks is not None:
            sinks = sinks.float().view(shape)
        pieces = []
        if batch.num_rows and self._plain and not softcap:
            block = query[:, :, : batch.num_rows].transpose(1, 2)
            lines = block.reshape(-1, 1, *shape, dim).unbind(0)
            pieces = self._attend_rows(lines, scale, sinks)
        for at in range(len(pieces), len(batch.segments)):
            segment = batch.segments[at]
            if segment.work == PADDING:
                rest = query.shape[2] - segment.start
                value_dim = self.group.shape.value_dim
                pieces.append(query.new_zeros((rest, *shape, value_dim)))
                break
            span = query[0, :, segment.start : segment.start + segment.length]
            span = span.reshape(*shape, segment.length, dim)
            column = None if sinks is None else sinks.unsqueeze(-1)
            seen = self._attend_span(at, segment, span, scale, softcap, column)
            pieces.append(seen.permute(2, 0, 1, 3))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _attend_rows(
        self,
        lines: tuple[torch.Tensor, ...],
        scale: float | None,
        sinks: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        rows = self._reads().rows
        if rows is not None and sinks is None:
            keys, values = rows[0][self.index], rows[1][self.index]
            return attention.rows(lines, keys, values, scale)
        return [
            attention.row(line, self._parts(at), scale, sinks)
            for at, line in enumerate(lines)
        ]

    def _attend_span(
        self,
        at: int,
        segment: Segment,
        span: torch.Tensor,
        scale: float | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """A segment that isn't a plain row; `span` is [H_kv, G, T, D]."""
        past = self._parts(at)
        if segment.length == 1:
            return attention.exact(
                span, past, None, scale, softcap=softcap, sinks=sinks
            )
        own = self._own(segment)
        mask = self._reads().masks[at]
        if not self._plain or softcap:
            if mask is None:
                low = segment.past - sum(key.shape[2] for key, _ in past)
                mask = attention.window_mask(
                    segment.past, segment.end, low, 0, self.keys
                )
            return attention.exact(
                span, [*past, own], mask, scale, softcap=softcap, sinks=sinks
            )
        if mask is not None:
            return attention.masked_chunk(span, [*past, own], mask, scale, sinks)
        return attention.chunk(span, past, own, scale, sinks)

    def _reads(self) -> GroupReads:
        return self._cache.reads(self.group)

    def _parts(self, at: int) -> list[KeyValue]:
        return self._reads().stretches[at].of(self.group, self.index)

    def _own(self, segment: Segment) -> KeyValue:
        assert self.fresh is not None
        begin, end = segment.start, segment.start + segment.length
        key, value = self.fresh
        return key[:, :, begin:end], value[:, :, begin:end]

    def lazy_initialization(self, *_: Any, **__: Any) -> None:
        """Nothing: the pool is there."""

    def get_seq_length(self) -> int:
        segments = self._cache.batch.segments
        return segments[0].past if segments else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


def paged_attention(  # noqa: PLR0913  transformers' protocol
    module: Any,
    query: torch.Tensor,
    key: Any,
    value: Any,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What the models call under NAME; key is the layer that `update` returned."""
    return key.attend(query, scaling, softcap, s_aux), None


ALL_ATTENTION_FUNCTIONS.register(NAME, paged_attention)
