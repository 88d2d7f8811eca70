"""Linear layers over packed weights, chosen by the number of rows.

Device process. `pack` makes a drop-in for nn.Linear from a weight or from 4-bit blocks:
input [*, K], output [*, N]. One copy of the weights serves few rows (bound by the bytes
that are read), a second, dense one serves many (bound by arithmetic):

    kind     few rows                            many rows
    none     dense                               dense
    int8     8-bit, a scale per row              dense, of the same values
    int4     4-bit, requantised in groups        dense, of the same values
    blocks   4-bit, the file's own blocks        dense, of the same values

Without `keep_dense` the quantised copy serves all rows: a fifth (4-bit) or a third of
the memory, but prefill is 10 or 3 times slower. A shape or a processor that a kernel
can't take falls back to dense. On CPU dense bfloat16 is kept in oneDNN's layout; a
processor without bfloat16 arithmetic computes in float32.

Invariant: the values differ from the packed source by rounding of the kind alone,
whatever kernel computes. Tensors are plain attributes: a module's parameters and
buffers are slow to look up, and there is nothing to train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neurond.device import kernels, quantise
from neurond.device.blocks import BLOCK, Blocks
from neurond.device.kernels import (
    Dense,
    Int4,
    Int8,
    Kernel,
    Reordered,
    Split,
)
from neurond.device.processor import Processor, this_processor

Values = Callable[[], Tensor]
"""What a quantised weight stands for, [N, K]; made only where it is kept."""

KINDS = ("none", "int8", "int4", "blocks")
ALL_ROWS = 1 << 62
_WIDE = 8192
# Rows up to which a quantised kernel is faster than dense bfloat16 (bench/linear.py),
# with and without AMX; for a head, whose rounding costs nothing beside it, more.
_FEW_ROWS: dict[Any, tuple[int, int]] = {Int4: (7, 16), Int8: (2, 8), Split: (2, 8)}
_HEAD_ROWS = 16
_SCORED_ROWS = 64
"""More than is fastest: only the quantised kernel gives logits in float32."""
_CUDA_ROWS = 16
_FORMS: dict[str, Any] = {
    "int4": Int4,
    "int8": Int8,
    "split": Split,
    "dense": Dense,
    "reordered": Reordered,
}


@dataclass(frozen=True, slots=True)
class LinearPlan:
    """How a weight is held. `dtype`: of the rows; `group_size`: of kind int4.

    `scores`: it makes logits, in float32 where the kernel has them so.
    """

    kind: str = "none"
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.bfloat16
    keep_dense: bool = True
    group_size: int = 64
    scores: bool = False


class PackedLinear(nn.Module):
    """`few` computes up to `few_rows` rows, `many` the rest; one may be both."""

    def __init__(self, few: Kernel, many: Kernel, few_rows: int, shape: Sequence[int]):
        super().__init__()
        self.few = few
        self.many = many
        self.few_rows = few_rows
        self.out_features, self.in_features = shape

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(x.reshape(-1, self.in_features))
        return rows.view(*x.shape[:-1], self.out_features)

    def rows(self, rows: Tensor) -> Tensor:
        """[M, K] to [M, N], without the cost of shapes."""
        return (self.few if rows.shape[0] <= self.few_rows else self.many)(rows)

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """`rows` of [M, K], and `other` [M, N] added."""
        kernel = self.few if rows.shape[0] <= self.few_rows else self.many
        return kernel.plus(rows, other)

    def only(self, kernel: Kernel) -> PackedLinear:
        """A layer that computes all rows with one of this one's kernels."""
        shape = (self.out_features, self.in_features)
        return PackedLinear(kernel, kernel, ALL_ROWS, shape)

    def held_bytes(self) -> int:
        both = {id(kernel): kernel.held_bytes() for kernel in (self.few, self.many)}
        return sum(both.values())

    def state(self, *, whole: bool = True) -> dict[str, Tensor]:
        """Everything `from_state` needs, as plain tensors; if not `whole`, it needs the
        dense weight too."""
        shape = torch.tensor([self.few_rows, self.out_features, self.in_features])
        state = {**_state_of("few", self.few), "shape": shape}
        if self.many is not self.few and whole:
            state.update(_state_of("many", self.many))
        return state

    def extra_repr(self) -> str:
        few, many = type(self.few).__name__, type(self.many).__name__
        return f"{self.in_features}, {self.out_features}, {few}/{many}"


def pack(
    weight: Tensor | Blocks,
    bias: Tensor | None,
    plan: LinearPlan,
    processor: Processor | None = None,
) -> PackedLinear:
    """A layer for weight [N, K], bias [N]. Raises ValueError for an unknown kind."""
    if plan.kind not in KINDS:
        raise ValueError(f"{plan.kind!r} is not one of {', '.join(KINDS)}")
    processor = processor or this_processor()
    few, values = _few(weight, bias, plan, processor)
    shape = tuple(weight.shape)
    if few is not None and not plan.keep_dense:
        return PackedLinear(few, few, ALL_ROWS, shape)
    dense = dense_kernel(values(), bias, plan, processor)
    if few is None:
        return PackedLinear(dense, dense, ALL_ROWS, shape)
    return PackedLinear(few, dense, _few_rows(few, shape[0], plan, processor), shape)


def from_state(state: dict[str, Tensor], device: torch.device) -> PackedLinear:
    """The layer that `state` was taken from, on a machine with the same `layout`."""
    few_rows, *shape = state["shape"].tolist()
    few = _kernel_of("few", state, device)
    both = any(name.startswith("many.") for name in state)
    many = _kernel_of("many", state, device) if both else few
    return PackedLinear(few, many, few_rows, shape)


def layout() -> str:
    """Names the machine's packed layout; a cache of states must not cross it."""
    return this_processor().layout


def join(parts: Sequence[nn.Module]) -> PackedLinear | nn.Linear | None:
    """One layer that computes all parts side by side; None where they don't fit."""
    if all(type(part) is nn.Linear for part in parts):
        return _join_plain([part for part in parts if isinstance(part, nn.Linear)])
    packed = [part for part in parts if isinstance(part, PackedLinear)]
    if len(packed) != len(parts) or len({part.few_rows for part in packed}) > 1:
        return None
    few = _join_kernels([part.few for part in packed])
    shared = all(part.few is part.many for part in packed)
    many = few if shared else _join_kernels([part.many for part in packed])
    if few is None or many is None:
        return None
    shape = (sum(part.out_features for part in packed), packed[0].in_features)
    return PackedLinear(few, many, packed[0].few_rows, shape)


def rows_of(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """[M, K] to [M, N], without nn.Module's hooks: they cost as much as an addition."""
    return layer.rows if isinstance(layer, PackedLinear) else layer.forward


def _few(
    weight: Tensor | Blocks, bias: Tensor | None, plan: LinearPlan, processor: Processor
) -> tuple[Kernel | None, Values]:
    """The quantised kernel, if there is one, and the values that a dense one takes."""
    able = plan.device.type == "cuda" or processor.vectors
    held = bias if bias is None else bias.to(plan.device, kernels.BF16)
    if isinstance(weight, Blocks):
        if able and plan.kind in ("blocks", "int4"):
            return _from_blocks(weight, held, plan)
        weight = weight.dense()
    if able and plan.kind == "int8" and quantise.can_int8(weight.shape):
        return _int8(weight, held, plan, processor)
    if able and plan.kind == "int4":
        return _int4(weight, held, plan)
    return None, lambda: weight


def _from_blocks(
    blocks: Blocks, bias: Tensor | None, plan: LinearPlan
) -> tuple[Kernel | None, Values]:
    if not quantise.can_int4(blocks.shape, BLOCK, plan.device):
        return None, blocks.dense
    zero = blocks.minimum + 8 * blocks.scale
    kernel = quantise.pack_int4(blocks.q, blocks.scale, zero, bias, plan.device)
    return kernel, blocks.dense


def _int4(
    weight: Tensor, bias: Tensor | None, plan: LinearPlan
) -> tuple[Kernel | None, Values]:
    if not quantise.can_int4(weight.shape, plan.group_size, plan.device):
        return None, lambda: weight
    codes, scale, zero = quantise.quantise_int4(weight, plan.group_size)
    kernel = quantise.pack_int4(codes, scale, zero, bias, plan.device)
    return kernel, partial(quantise.dequantise_int4, codes, scale, zero)


def _int8(
    weight: Tensor, bias: Tensor | None, plan: LinearPlan, processor: Processor
) -> tuple[Kernel, Values]:
    codes, scale = quantise.quantise_int8(weight)
    values = partial(quantise.dequantise_int8, codes, scale)
    if plan.device.type == "cpu" and processor.bfloat16:
        scores = torch.ones(1) if plan.scores else None
        return Split(codes, scale.float(), bias, scores), values
    return Int8(codes.to(plan.device), scale.to(plan.device), bias), values


def dense_kernel(
    weight: Tensor, bias: Tensor | None, plan: LinearPlan, processor: Processor
) -> Kernel:
    """For many rows, or all. weight [N, K], bias [N]."""
    on_cpu = plan.device.type == "cpu"
    dtype = plan.dtype
    if on_cpu and dtype == kernels.BF16 and not processor.bfloat16:
        dtype = torch.float32  # without the instructions bfloat16 is emulated
    weight = weight.to(plan.device, dtype)
    moved = bias if bias is None else bias.to(plan.device, dtype)
    if on_cpu and dtype == kernels.BF16:
        return Reordered(weight, moved)
    return Dense(weight, moved)


def _few_rows(few: Kernel, rows: int, plan: LinearPlan, processor: Processor) -> int:
    if plan.device.type == "cuda":
        return _CUDA_ROWS
    if isinstance(few, Split) and plan.scores:
        return _SCORED_ROWS
    if isinstance(few, Split) and rows >= _WIDE:
        return _HEAD_ROWS
    with_amx, without = _FEW_ROWS[type(few)]
    return with_amx if processor.matrix_units else without


def _join_plain(parts: Sequence[nn.Linear]) -> nn.Linear | None:
    if len({part.in_features for part in parts}) > 1:
        return None
    joined = Dense.join([Dense(part.weight.detach(), _bias(part)) for part in parts])
    whole = nn.Linear(
        parts[0].in_features,
        joined.weight.shape[0],
        joined.bias is not None,
        device="meta",
    )
    whole.weight = _frozen(joined.weight)
    if joined.bias is not None:
        whole.bias = _frozen(joined.bias)
    return whole


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _bias(part: nn.Linear) -> Tensor | None:
    return None if part.bias is None else part.bias.detach()


def _join_kernels(parts: Sequence[Any]) -> Any:
    forms = {type(part) for part in parts}
    return forms.pop().join(parts) if len(forms) == 1 else None


def _state_of(role: str, kernel: Kernel) -> dict[str, Tensor]:
    form = next(name for name, made in _FORMS.items() if type(kernel) is made)
    named = kernel.tensors().items()
    return {f"{role}.{form}.{name}": tensor for name, tensor in named}


def _kernel_of(role: str, state: dict[str, Tensor], device: torch.device) -> Any:
    parts: dict[str, Tensor | None] = {"bias": None}
    form = ""
    for name, tensor in state.items():
        if name.startswith(f"{role}."):
            _, form, field = name.split(".")
            parts[field] = tensor.to(device)
    return _FORMS[form](**parts)
