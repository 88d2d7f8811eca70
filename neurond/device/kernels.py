"""Matrix products over weights in one packed form each: 4-bit, 8-bit, dense.

Device process. A kernel owns its tensors and nothing else: rows [M, K] in, rows [M, N]
out, M >= 1, bias included. Few rows are bound by the bytes of the weights, so the 4-bit
form wins; many rows are bound by arithmetic, so dense bfloat16 in the layout of the
matrix units wins. Which of them computes a call is decided in `linear`.

    Int4    w = (q - 8) * scale + zero, q in 0..15, scale and zero per group of a row:
            torch's tinygemm form. Takes bfloat16 rows only: its float32 path is 20
            times slower
    Int8    w = q * scale, scale per row of the weight: torch's weight-only kernel
    Dense   w in oneDNN's blocked layout (CPU, bfloat16), or as it is (elsewhere)

Packed bytes depend on the processor's vector width: `layout()` names it, so that no
other machine reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BF16 = torch.bfloat16
_CUDA_K_TILES = 8  # the widest; the kernel reads 16 * tiles columns at a time
_CUDA_N_MULTIPLE = 8
_CPU_N_MULTIPLE = 16
_INT8_K_MULTIPLE = 16  # other widths read past the row's end


@dataclass(frozen=True, slots=True)
class Processor:
    """What a CPU's kernels can do. `matrix_units`: AMX."""

    vectors: bool
    bfloat16: bool
    matrix_units: bool
    layout: str


def this_processor() -> Processor:
    capability = torch.backends.cpu.get_cpu_capability()
    has_onednn = torch.backends.mkldnn.is_available()
    bfloat16 = has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    matrix_units = bool(bfloat16 and torch.cpu._is_amx_tile_supported())
    return Processor(
        vectors=capability in ("AVX2", "AVX512"),
        bfloat16=bool(bfloat16 and capability == "AVX512"),
        matrix_units=matrix_units,
        layout=f"{capability.lower()}-{torch.__version__}",
    )


class Kernel(Protocol):
    """`tensors` are plain and serialisable, in a fixed order."""

    def __call__(self, rows: Tensor) -> Tensor: ...

    def tensors(self) -> dict[str, Tensor]: ...

    def held_bytes(self) -> int: ...


class Int4:
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


class Int8:
    """quantised [N, K] int8, scale [N] bfloat16."""

    def __init__(self, quantised: Tensor, scale: Tensor, bias: Tensor | None):
        self.quantised = quantised
        self.scale = scale
        self.bias = bias

    def __call__(self, rows: Tensor) -> Tensor:
        if rows.dtype != BF16:
            return self(rows.to(BF16)).to(rows.dtype)
        out = torch._weight_int8pack_mm(rows, self.quantised, self.scale)
        return out if self.bias is None else out.add_(self.bias)

    def tensors(self) -> dict[str, Tensor]:
        return _named(quantised=self.quantised, scale=self.scale, bias=self.bias)

    def held_bytes(self) -> int:
        return _bytes(self.quantised, self.scale, self.bias)

    @staticmethod
    def join(parts: Sequence[Int8]) -> Int8:
        return Int8(
            torch.cat([part.quantised for part in parts]),
            torch.cat([part.scale for part in parts]),
            _join_bias([(part.bias, part.scale.shape[0]) for part in parts]),
        )


class Dense:
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


class Reordered:
    """A dense bfloat16 weight in oneDNN's own layout: no re-packing on each call."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        self.bias = bias
        self._multiply = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, rows: Tensor) -> Tensor:
        if rows.dtype != BF16:
            return self(rows.to(BF16)).to(rows.dtype)
        out: Tensor = self._multiply(rows, self.weight, self.bias, "none", [], "")
        return out

    def tensors(self) -> dict[str, Tensor]:
        return _named(weight=self.weight.to_dense(), bias=self.bias)

    def held_bytes(self) -> int:
        return self.weight.numel() * self.weight.element_size() + _bytes(self.bias)

    @staticmethod
    def join(parts: Sequence[Reordered]) -> Reordered:
        return Reordered(
            torch.cat([part.weight.to_dense() for part in parts]),
            _join_bias([(part.bias, part.weight.shape[0]) for part in parts]),
        )


def can_int4(shape: Sequence[int], group_size: int, device: torch.device) -> bool:
    """Whether torch's 4-bit kernel takes a weight [N, K]."""
    rows, columns = shape
    if group_size not in (32, 64, 128, 256) or columns % group_size:
        return False
    if device.type == "cuda":
        wide = columns % (16 * _CUDA_K_TILES) == 0
        return wide and rows % _CUDA_N_MULTIPLE == 0
    return rows % _CPU_N_MULTIPLE == 0


def can_int8(shape: Sequence[int]) -> bool:
    return shape[1] % _INT8_K_MULTIPLE == 0


def pack_int4(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    bias: Tensor | None,
    device: torch.device,
) -> Int4:
    """codes uint8 [N, K] in 0..15; scale, zero [N, K / group]: w = (q - 8) * s + z."""
    scales_zeros = torch.stack((scale.to(BF16), zero.to(BF16)), -1)
    scales_zeros = scales_zeros.transpose(0, 1).contiguous().to(device)
    if device.type == "cuda":
        codes = codes.to(device)
        pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).contiguous()
        packed = torch._convert_weight_to_int4pack(pairs, _CUDA_K_TILES)
    else:
        wide = codes.to(torch.int32)
        packed = torch._convert_weight_to_int4pack_for_cpu(wide, 1)
    return Int4(packed, scales_zeros, bias)


def quantise_int4(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """codes uint8 [N, K]; scale, zero [N, K / group], as the kernel rounds them."""
    groups = weight.float().unflatten(1, (-1, group_size))
    low, high = groups.aminmax(dim=-1)
    scale = ((high - low) / 15).clamp_min(1e-8).to(BF16).float()
    zero = (low + 8 * scale).to(BF16).float()
    codes = (groups - (zero - 8 * scale).unsqueeze(-1)) / scale.unsqueeze(-1)
    return codes.round_().clamp_(0, 15).to(torch.uint8).flatten(1), scale, zero


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """codes int8 [N, K], scale [N] bfloat16, symmetric."""
    wide = weight.float()
    scale = (wide.abs().amax(1) / 127).clamp_min(1e-8).to(BF16)
    codes = (wide / scale.float().unsqueeze(1)).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scale


def dequantise_int4(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """float32 [N, K] of codes uint8 [N, K], scale and zero [N, K / group]."""
    groups = codes.unflatten(1, (scale.shape[1], -1)).float()
    wide = groups.sub_(8).mul_(scale.unsqueeze(-1)).add_(zero.unsqueeze(-1))
    return wide.flatten(1)


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
