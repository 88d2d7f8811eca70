"""Matrix products over weights in one packed form each: 4-bit, 8-bit, dense.

Device process. A kernel owns its tensors and nothing else: rows [M, K] in, rows [M, N]
out, M >= 1, bias included. Few rows are bound by the bytes of the weights, so the 4-bit
form wins; many rows are bound by arithmetic, so dense bfloat16 in the layout of the
matrix units wins. `linear` decides.

    Int4    w = (q - 8) * scale + zero, q in 0..15, scale and zero per group of a row:
            torch's tinygemm form. bfloat16 rows only: float32 is 20 times slower
    Int8    w = q * scale, scale per row of the weight: torch's weight-only kernel,
            for CUDA and for processors without oneDNN's
    Split   the same weights in oneDNN's 8-bit product. The rows are two bytes a number,
            x = (high + low / 254) * amax / 127, and go through it as twice as many
            rows: nothing is lost to bfloat16, and weights are read at full speed
    Dense   w in oneDNN's blocked layout (CPU, bfloat16), or as it is (elsewhere)

Packed bytes depend on the processor's vector width, which `processor` names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

BF16 = torch.bfloat16
_SMALLEST = 1e-30
_SPLIT_AT_ONCE = 128  # twice as many float32 products: 100 MB for a vocabulary of 100k


class Kernel(ABC):
    """`tensors` are plain and serialisable."""

    @abstractmethod
    def __call__(self, rows: Tensor) -> Tensor: ...

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]: ...

    @abstractmethod
    def held_bytes(self) -> int: ...

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """The product and `other` [M, N] added."""
        return self(rows).add_(other)


class Int4(Kernel):
    """packed as torch packs it; scales_zeros [K / group, N, 2] bfloat16."""

    def __init__(self, packed: Tensor, scales_zeros: Tensor, bias: Tensor | None):
        self.packed = packed
        self.scales_zeros = scales_zeros
        self.bias = bias
        self._group_size = _group_size(packed, scales_zeros)
        cuda = packed.device.type == "cuda"
        self._multiply = (
            torch._weight_int4pack_mm if cuda else torch._weight_int4pack_mm_for_cpu
        )

    def __call__(self, rows: Tensor) -> Tensor:
        if rows.dtype != BF16:
            return self(rows.to(BF16)).to(rows.dtype)
        out = self._multiply(rows, self.packed, self._group_size, self.scales_zeros)
        return out if self.bias is None else out.add_(self.bias)

    def tensors(self) -> dict[str, Tensor]:
        return _named(
            packed=self.packed, scales_zeros=self.scales_zeros, bias=self.bias
        )

    def held_bytes(self) -> int:
        return _bytes(self.packed, self.scales_zeros, self.bias)

    @staticmethod
    def join(parts: Sequence[Int4]) -> Int4 | None:
        """None where the packed blocks of 64 rows can't be laid end to end."""
        whole = all(part.scales_zeros.shape[1] % 64 == 0 for part in parts)
        if not whole or len({part._group_size for part in parts}) > 1:
            return None
        return Int4(
            torch.cat([part.packed for part in parts]),
            torch.cat([part.scales_zeros for part in parts], 1),
            _join_bias([(part.bias, part.scales_zeros.shape[1]) for part in parts]),
        )


class Int8(Kernel):
    """codes [N, K] int8, scale [N] bfloat16."""

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None):
        self.codes = codes
        self.scale = scale
        self.bias = bias

    def __call__(self, rows: Tensor) -> Tensor:
        if rows.dtype != BF16:
            return self(rows.to(BF16)).to(rows.dtype)
        out = torch._weight_int8pack_mm(rows, self.codes, self.scale)
        return out if self.bias is None else out.add_(self.bias)

    def tensors(self) -> dict[str, Tensor]:
        return _named(codes=self.codes, scale=self.scale, bias=self.bias)

    def held_bytes(self) -> int:
        return _bytes(self.codes, self.scale, self.bias)

    @staticmethod
    def join(parts: Sequence[Int8]) -> Int8:
        return Int8(
            torch.cat([part.codes for part in parts]),
            torch.cat([part.scale for part in parts]),
            _join_bias([(part.bias, part.scale.shape[0]) for part in parts]),
        )


class Split(Kernel):
    """codes as `Int8`, scale [N] float32. Rounding the rows takes 20 µs a call.

    `scores`: what comes out is not rounded to the type of the rows. bfloat16 has steps
    of 1/8 where logits are large, so the likeliest tokens would often be equal.
    """

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        scores: Tensor | None = None,
    ):
        self.codes = torch.ops.onednn.qlinear_prepack(codes, None)
        self.scale = scale
        self.bias = bias
        self.scores = scores
        self._zero = torch.zeros(scale.shape[0], dtype=torch.long)
        self._multiply = torch.ops.onednn.qlinear_pointwise.default

    def __call__(self, rows: Tensor) -> Tensor:
        if len(rows) > _SPLIT_AT_ONCE:
            return torch.cat([self(part) for part in rows.split(_SPLIT_AT_ONCE)])
        most = torch.linalg.vector_norm(rows, torch.inf, 1, True, dtype=torch.float32)
        most = most.clamp_min_(_SMALLEST)
        scaled = rows * (127 / most)
        high = scaled.round()
        low = scaled.sub_(high).mul_(254).round_()
        both = self._products(torch.cat((high, low)).to(torch.int8))
        count = rows.shape[0]
        out = both.narrow(0, 0, count).add_(both.narrow(0, count, count), alpha=1 / 254)
        out = out.mul_(most / 127)
        out = out if self.bias is None else out.add_(self.bias)
        return out if self.scores is not None else out.to(rows.dtype)

    def _products(self, codes: Tensor) -> Tensor:
        """int8 [R, K] to float32 [R, N]."""
        weights = (self.codes, self.scale, self._zero, None)
        out: Tensor = self._multiply(
            codes, 1.0, 0, *weights, 1.0, 0, torch.float32, "none", [], ""
        )
        return out

    def tensors(self) -> dict[str, Tensor]:
        codes = self.codes.to_dense().t().contiguous()
        whole = {"codes": codes, "scale": self.scale, "bias": self.bias}
        return _named(**whole, scores=self.scores)

    def held_bytes(self) -> int:
        return self.codes.numel() + _bytes(self.scale, self._zero, self.bias)

    @staticmethod
    def join(parts: Sequence[Split]) -> Split:
        return Split(
            torch.cat([part.codes.to_dense().t() for part in parts]),
            torch.cat([part.scale for part in parts]),
            _join_bias([(part.bias, part.scale.shape[0]) for part in parts]),
        )


class Dense(Kernel):
    """weight [N, K] as it is."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight = weight
        self.bias = bias

    def __call__(self, rows: Tensor) -> Tensor:
        if rows.dtype != self.weight.dtype:
            return self(rows.to(self.weight.dtype)).to(rows.dtype)
        return torch.nn.functional.linear(rows, self.weight, self.bias)

    def tensors(self) -> dict[str, Tensor]:
        return _named(weight=self.weight, bias=self.bias)

    def held_bytes(self) -> int:
        return _bytes(self.weight, self.bias)

    @staticmethod
    def join(parts: Sequence[Dense]) -> Dense:
        return Dense(
            torch.cat([part.weight for part in parts]),
            _join_bias([(part.bias, part.weight.shape[0]) for part in parts]),
        )


class Reordered(Kernel):
    """A dense bfloat16 weight in oneDNN's own layout: no re-packing on each call.

    What follows a product is done while its tile is in the cache, before it is rounded.
    The layout is made at the first product: until then parts can be joined cheaply.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self._plain: Tensor | None = weight
        self._blocked: Tensor | None = None
        self.bias = bias
        self._multiply = torch.ops.mkldnn._linear_pointwise.default
        self._combine = torch.ops.mkldnn._linear_pointwise.binary

    @property
    def weight(self) -> Tensor:
        """In oneDNN's layout."""
        if self._blocked is None:
            self._blocked = torch.ops.mkldnn._reorder_linear_weight(self._plain, 1)
            self._plain = None
        return self._blocked

    @property
    def plain(self) -> Tensor:
        """[N, K] as it was given."""
        return self.weight.to_dense() if self._plain is None else self._plain

    def __call__(self, rows: Tensor) -> Tensor:
        if rows.dtype != BF16:
            return self(rows.to(BF16)).to(rows.dtype)
        out: Tensor = self._multiply(rows, self.weight, self.bias, "none", [], "")
        return out

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        if rows.dtype != BF16:
            return super().plus(rows, other)
        out: Tensor = self._combine(rows, other, self.weight, self.bias, "add")
        return out

    def silu(self, rows: Tensor) -> Tensor:
        """silu of the product; rows bfloat16."""
        out: Tensor = self._multiply(rows, self.weight, self.bias, "swish", [], "")
        return out

    def times(self, rows: Tensor, other: Tensor) -> Tensor:
        """The product times `other` [M, N]; both bfloat16."""
        out: Tensor = self._combine(rows, other, self.weight, self.bias, "mul")
        return out

    def tensors(self) -> dict[str, Tensor]:
        return _named(weight=self.plain, bias=self.bias)

    def held_bytes(self) -> int:
        held = self.weight if self._plain is None else self._plain
        return held.numel() * held.element_size() + _bytes(self.bias)

    @staticmethod
    def join(parts: Sequence[Reordered]) -> Reordered:
        return Reordered(
            torch.cat([part.plain for part in parts]),
            _join_bias([(part.bias, part.weight.shape[0]) for part in parts]),
        )


def _group_size(packed: Tensor, scales_zeros: Tensor) -> int:
    codes = packed.numel() * packed.element_size() * 2
    return codes // (scales_zeros.shape[0] * scales_zeros.shape[1])


def _join_bias(parts: Sequence[tuple[Tensor | None, int]]) -> Tensor | None:
    """Zeros where one part has none."""
    told = [bias for bias, _ in parts if bias is not None]
    if not told:
        return None
    return torch.cat(
        [told[0].new_zeros(size) if bias is None else bias for bias, size in parts]
    )


def _named(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _bytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
