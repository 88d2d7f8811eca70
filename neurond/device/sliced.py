"""Dense products in slices of rows: invariant numerics.

Device process. oneDNN sums a row of a dense product alike for up to 128 rows a call;
with more it may cut the sum elsewhere (measured: K = 1536, 256 rows). So a tile of many
rows is computed in slices. Kernels over 4 and 8 bits sum a row alike at any number of
rows and are left as they are.

Invariant: one kernel, so one form of the weights, computes every row of a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neurond.device.kernels import Kernel, Reordered
from neurond.device.linear import ALL_ROWS, PackedLinear

_SLICE_ROWS = 64


class Sliced(Kernel):
    def __init__(self, whole: Kernel) -> None:
        self.whole = whole

    def __call__(self, rows: Tensor) -> Tensor:
        if rows.shape[0] <= _SLICE_ROWS:
            return self.whole(rows)
        return torch.cat([self.whole(part) for part in rows.split(_SLICE_ROWS)])

    def tensors(self) -> dict[str, Tensor]:
        return self.whole.tensors()

    def held_bytes(self) -> int:
        return self.whole.held_bytes()


def slice_products(module: nn.Module) -> None:
    """Of all packed layers; each keeps to the kernel that computes its few rows."""
    for layer in module.modules():
        if isinstance(layer, PackedLinear):
            kernel = layer.few
            dense = isinstance(kernel, Reordered)
            layer.few = layer.many = Sliced(kernel) if dense else kernel
            layer.few_rows = ALL_ROWS
