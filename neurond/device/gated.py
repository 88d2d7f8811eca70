"""A gated linear unit, silu(gate(x)) * up(x), in as few operations as its layers allow.

Device process. Few rows take one product over both weights side by side. Many rows over
weights in oneDNN's layout take two, with the activation and the product of the two done
inside of them.

Invariant: the layers given are used up; nothing is held twice.
Source: Shazeer 2020, "GLU Variants Improve Transformer".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neurond.device import linear
from neurond.device.kernels import Reordered
from neurond.device.linear import ALL_ROWS, PackedLinear


class SideBySide(nn.Module):
    """Layers over the same rows, their outputs in one; for what can't be joined."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, rows: Tensor) -> Tensor:
        return torch.cat([part(rows) for part in self.parts], -1)


class Gated(nn.Module):
    """gate, up: [M, K] to [M, N]."""

    def __init__(self, gate: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self._few_rows = ALL_ROWS
        pair = _reordered(gate, up)
        if pair is None:
            self._join(gate, up)
            return
        first, second = pair
        self._few_rows = 0
        if first.few is not first.many and second.few is not second.many:
            self._few_rows = min(first.few_rows, second.few_rows)
            self._join(first.only(first.few), second.only(second.few))
        self.gate, self.up = first.only(first.many), second.only(second.many)
        self._silu, self._times = first.many.silu, second.many.times

    def _join(self, gate: nn.Module, up: nn.Module) -> None:
        self.joined = linear.join([gate, up]) or SideBySide([gate, up])
        self._both = linear.rows_of(self.joined)

    def forward(self, rows: Tensor) -> Tensor:
        if rows.shape[0] > self._few_rows:
            activated: Tensor = self._silu(rows)
            return self._times(rows, activated)
        gate, up = self._both(rows).chunk(2, -1)
        return nn.functional.silu(gate).mul_(up)


def _reordered(gate: nn.Module, up: nn.Module) -> tuple[Any, Any] | None:
    """Both, if both compute many rows in oneDNN's layout."""
    for part in (gate, up):
        if not (isinstance(part, PackedLinear) and isinstance(part.many, Reordered)):
            return None
    return gate, up
