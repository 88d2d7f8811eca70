"""Root-mean-square norms in few operations.

Device process. torch has no CPU kernel for RMSNorm: it computes it in eight small
steps. Its layer norm is one. Of a row followed by its own negation the mean is zero and
the variance is the mean square, so that

    layer_norm([x, -x], [w, w]) = [rms_norm(x, w), -rms_norm(x, w)]

exactly, with float32 sums inside. For few rows that takes half the time; for many it
moves twice the bytes and loses.

Invariant: results are those of transformers' norms up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_MIRRORED_ROWS = 8


class RowNorm(nn.Module):
    """Stands for a transformers RMSNorm over the last dimension."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self._scale = norm.weight.detach()
        self._wide_scale = self._scale.float()
        self._mirrored = torch.cat((self._scale, self._scale))
        self._width = self._scale.shape[0]
        self._epsilon = float(norm.variance_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x.reshape(-1, self._width)).view(x.shape)

    def rows(self, rows: Tensor) -> Tensor:
        """[M, H] to [M, H], rows contiguous."""
        if rows.device.type != "cpu":
            return torch.rms_norm(rows, (self._width,), self._scale, self._epsilon)
        return self._mirror(rows) if len(rows) <= _MIRRORED_ROWS else self._many(rows)

    def _mirror(self, rows: Tensor) -> Tensor:
        width = self._width
        pair = torch.cat((rows, rows.neg()), 1)
        scaled = torch.layer_norm(
            pair, (2 * width,), self._mirrored, None, self._epsilon
        )
        return scaled.narrow(1, 0, width).contiguous()

    def _many(self, rows: Tensor) -> Tensor:
        """In place where torch's own allocates: half the time."""
        wide = rows.to(torch.float32, copy=True)
        norm = torch.linalg.vector_norm(wide, 2, 1, True)
        inverse = norm.square_().mul_(1 / self._width).add_(self._epsilon).rsqrt_()
        return wide.mul_(inverse).mul_(self._wide_scale).to(rows.dtype)


class HeadNorms(nn.Module):
    """The norms of query and key heads (Qwen3), over all of them at once."""

    def __init__(self, query: Any, key: Any, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.query, self.key = query, key
        parts = [query.weight.detach()] * num_heads + [
            key.weight.detach()
        ] * num_kv_heads
        self._scale = torch.stack(parts)
        self._epsilon = float(query.variance_epsilon)

    @staticmethod
    def of(attention: Any) -> HeadNorms | None:
        query, key = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        if query is None or key is None:
            return None
        num_heads = attention.o_proj.in_features // attention.head_dim
        groups = attention.num_key_value_groups
        return HeadNorms(query, key, num_heads, num_heads // groups)

    def heads(self, heads: Tensor) -> Tensor:
        """[..., heads, D] to the same shape."""
        scaled = torch.rms_norm(heads, (heads.shape[-1],), None, self._epsilon)
        return scaled.mul_(self._scale)
