"""The paged KV pool of one model.

Device process. Layers of one shape share two tensors:

    keys    [layers, num_pages * page_tokens, H_kv, D_k]
    values  [layers, num_pages * page_tokens, H_kv, D_v]

so that a layer's pool is token-major, a run of consecutive pages is one strided view,
and the views of all layers on a run come from one call. On the CPU the memory is an
anonymous mapping: zero, and the host's until it is written.

Invariant: pages are told from outside; nothing here knows whose they are.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable
from collections.abc import Sequence as Listing
from dataclasses import dataclass

import torch

from neurond.device.batch import Run, runs_of

Views = tuple[torch.Tensor, ...]
"""One [1, H_kv, tokens, D] per layer of a group."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What a layer keeps per token. `window` = how many last tokens it reads, 0: all.

    Layers of one shape form a group.
    """

    num_heads: int
    key_dim: int
    value_dim: int
    window: int = 0

    def token_bytes(self, dtype: torch.dtype) -> int:
        return self.num_heads * (self.key_dim + self.value_dim) * dtype.itemsize


class Group:
    """The layers of one shape; `keys` and `values` are [layers, 1, H_kv, tokens, D]."""

    def __init__(
        self,
        shape: LayerShape,
        num_layers: int,
        num_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shape = shape
        sizes = (num_layers, num_tokens, shape.num_heads)
        self._keys = _zeros((*sizes, shape.key_dim), dtype, device)
        self._values = _zeros((*sizes, shape.value_dim), dtype, device)
        self.keys = self._keys.permute(0, 2, 1, 3).unsqueeze(1)
        self.values = self._values.permute(0, 2, 1, 3).unsqueeze(1)

    def views(self, run: Run) -> tuple[Views, Views]:
        """Keys and values of every layer on a run."""
        first, count = run
        keys = self.keys[:, :, :, first : first + count]
        values = self.values[:, :, :, first : first + count]
        return keys.unbind(0), values.unbind(0)

    def tokens(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values, [tokens, H_kv, D]."""
        return self._keys[layer], self._values[layer]

    def clear(self, run: Run) -> None:
        first, count = run
        self._keys[:, first : first + count].zero_()
        self._values[:, first : first + count].zero_()

    def copy(self, source: int, target: int, count: int) -> None:
        for pool in (self._keys, self._values):
            pool[:, target : target + count] = pool[:, source : source + count]


class Pool:
    """All groups. `place[layer]` = its (group, index in the group)."""

    def __init__(
        self,
        shapes: Listing[LayerShape | None],
        num_pages: int,
        page_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`shapes` has one entry per layer of the model, None where it keeps no KV."""
        self.page_tokens = page_tokens
        self.num_pages = num_pages
        counts: dict[LayerShape, int] = {}
        indices: list[int] = []
        for shape in shapes:
            indices.append(counts.get(shape, 0) if shape else -1)
            if shape:
                counts[shape] = indices[-1] + 1
        groups = {
            shape: Group(shape, count, num_pages * page_tokens, dtype, device)
            for shape, count in counts.items()
        }
        self.groups = list(groups.values())
        self.place: list[tuple[Group, int] | None] = [
            (groups[shape], index) if shape else None
            for shape, index in zip(shapes, indices, strict=True)
        ]

    def clear(self, pages: Iterable[int]) -> None:
        """Zero them, whole."""
        ordered = sorted(pages)
        num_tokens = len(ordered) * self.page_tokens
        for run in runs_of(ordered, self.page_tokens, num_tokens):
            for group in self.groups:
                group.clear(run)

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """The first tokens of a page into another one."""
        size = self.page_tokens
        for group in self.groups:
            group.copy(source * size, target * size, num_tokens)


def page_bytes(
    shapes: Iterable[LayerShape | None], page_tokens: int, dtype: torch.dtype
) -> int:
    """Of a page over all layers."""
    return page_tokens * sum(shape.token_bytes(dtype) for shape in shapes if shape)


def _zeros(
    size: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    # an anonymous mapping: torch.zeros would write, so commit, every byte
    mapping = mmap.mmap(-1, max(1, math.prod(size) * dtype.itemsize))
    return torch.frombuffer(mapping, dtype=dtype, count=math.prod(size)).view(size)
