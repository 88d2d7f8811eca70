"""Weights in 4 and 8 bits: which shapes can be, how they are rounded, how packed.

Device process, pure. Rounding takes half a dozen passes over numbers four times as wide
as the weight's: some rows at a time, so that they stay in the processor's cache, take
little memory, and no call is long.

Invariant: scales are rounded as a kernel holds them before codes are chosen for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from neurond.device.kernels import BF16, Int4

_CUDA_K_TILES = 8  # the widest; the kernel reads 16 * tiles columns at a time
_CUDA_N_MULTIPLE = 8
_CPU_N_MULTIPLE = 16
PIECE_WEIGHTS = 1 << 19
_INT8_K_MULTIPLE = 16  # torch's kernel reads past the row's end at other widths


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
    rows, columns = weight.shape
    codes = weight.new_empty((rows, columns), dtype=torch.uint8)
    shape = (rows, columns // group_size)
    scale, zero = (weight.new_empty(shape, dtype=torch.float32) for _ in range(2))
    for part in pieces(rows, columns):
        made = _round_int4(weight[part], group_size)
        codes[part], scale[part], zero[part] = made
    return codes, scale, zero


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """codes int8 [N, K], scale [N] bfloat16, symmetric."""
    codes = torch.empty_like(weight, dtype=torch.int8)
    scale = weight.new_empty(weight.shape[:1], dtype=BF16)
    for part in pieces(*weight.shape):
        codes[part], scale[part] = _round_int8(weight[part])
    return codes, scale


def dequantise_int4(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """float32 [N, K] of codes uint8 [N, K], scale and zero [N, K / group]."""

    def values(part: slice) -> Tensor:
        groups = codes[part].unflatten(1, (scale.shape[1], -1)).float()
        groups = groups.sub_(8).mul_(scale[part].unsqueeze(-1))
        return groups.add_(zero[part].unsqueeze(-1)).flatten(1)

    return _filled(codes, torch.float32, values)


def dequantise_int8(codes: Tensor, scale: Tensor) -> Tensor:
    """bfloat16 [N, K] of what `quantise_int8` gave."""
    return _filled(
        codes, BF16, lambda part: codes[part].to(BF16).mul_(scale[part].unsqueeze(1))
    )


def pieces(rows: int, columns: int) -> Iterator[slice]:
    """All rows, so many at a time that they have at most PIECE_WEIGHTS weights."""
    step = max(1, PIECE_WEIGHTS // max(1, columns))
    return (slice(begin, begin + step) for begin in range(0, rows, step))


def _filled(
    like: Tensor, dtype: torch.dtype, values: Callable[[slice], Tensor]
) -> Tensor:
    whole = torch.empty_like(like, dtype=dtype)
    for part in pieces(*like.shape):
        whole[part] = values(part)
    return whole


def _round_int4(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    groups = weight.float().unflatten(1, (-1, group_size))
    low, high = groups.aminmax(dim=-1)
    scale = ((high - low) / 15).clamp_min(1e-8).to(BF16).float()
    zero = (low + 8 * scale).to(BF16).float()
    codes = (groups - (zero - 8 * scale).unsqueeze(-1)) / scale.unsqueeze(-1)
    return codes.round_().clamp_(0, 15).to(torch.uint8).flatten(1), scale, zero


def _round_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    scale = (wide.abs().amax(1) / 127).clamp_min(1e-8).to(BF16)
    codes = (wide / scale.float().unsqueeze(1)).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scale
