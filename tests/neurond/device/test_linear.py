"""Packed linear layers give what their source's values give, whoever computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from neurond.device import linear
from neurond.device.blocks import Blocks
from neurond.device.kernels import Split
from neurond.device.linear import LinearPlan, PackedLinear, join, pack
from neurond.device.processor import Processor, this_processor
from neurond.device.quantise import PIECE_WEIGHTS, quantise_int8

BF16 = torch.bfloat16
CPU = torch.device("cpu")
AMX = Processor(vectors=True, bfloat16=True, matrix_units=True, layout="test")
VECTORS = Processor(vectors=True, bfloat16=False, matrix_units=False, layout="test")
SCALAR = Processor(vectors=False, bfloat16=False, matrix_units=False, layout="test")
N, K = 128, 192
# Rounding of the kinds, relative to the weight's largest value: half a step of 15 or of
# 127, plus bfloat16 scales.
BOUNDS = {"none": 0.004, "int8": 0.008, "int4": 0.06}


def weight_of(rows: int = N, columns: int = K) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))


def blocks_of(rows: int = N, columns: int = K) -> Blocks:
    source = torch.Generator().manual_seed(5)
    q = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, generator=source)
    shape = (rows, columns // 32)
    scale = torch.rand(shape, generator=source) + 0.1
    return Blocks(q, scale, -8 * scale + 0.3)


def rows_of(count: int, columns: int = K) -> Tensor:
    source = torch.Generator().manual_seed(count)
    return torch.randn(count, columns, generator=source).to(BF16)


def make(kind: str, keep_dense: bool = True, processor: Processor = AMX) -> Any:
    plan = LinearPlan(kind, keep_dense=keep_dense)
    source: Blocks | Tensor = blocks_of() if kind == "blocks" else weight_of()
    return pack(source, None, plan, processor)


def values_of(layer: PackedLinear) -> Tensor:
    """The weight that the layer multiplies with, read off it row by row."""
    return torch.cat([layer(unit[None]) for unit in torch.eye(K).to(BF16)]).t().float()


@pytest.mark.parametrize("kind", ["none", "int8", "int4"])
def test_a_packed_weight_differs_by_the_rounding_of_its_kind(kind: str) -> None:
    weight = weight_of()
    error = (values_of(make(kind)) - weight).abs().max() / weight.abs().max()
    assert error < BOUNDS[kind]


def test_blocks_keep_the_values_of_the_file() -> None:
    values = blocks_of().dense()
    error = (values_of(make("blocks")) - values).abs().max() / values.abs().max()
    assert error < 0.008


@pytest.mark.parametrize("kind", linear.KINDS)
@pytest.mark.parametrize("keep_dense", [True, False])
@pytest.mark.parametrize("processor", [AMX, VECTORS, SCALAR])
def test_every_row_count_gives_the_product_with_the_values(
    kind: str, keep_dense: bool, processor: Processor
) -> None:
    layer = make(kind, keep_dense, processor)
    values = values_of(layer)
    edge = min(layer.few_rows, 8)
    for count in sorted({1, 2, edge - 1, edge, edge + 1, 16, 200} - {0}):
        rows = rows_of(count)
        wanted = rows.float() @ values.t()
        error = (layer(rows).float() - wanted).abs().max() / wanted.abs().max()
        assert error < 0.02, count


class Noted:
    """A kernel that says when it is used."""

    def __init__(self, name: str, kernel: Any, calls: list[str]) -> None:
        self.tensors, self.held_bytes = kernel.tensors, kernel.held_bytes
        self._name, self._kernel, self._calls = name, kernel, calls

    def __call__(self, rows: Tensor) -> Any:
        self._calls.append(self._name)
        return self._kernel(rows)


@pytest.mark.parametrize("kind", ["int8", "int4", "blocks"])
def test_few_rows_and_many_are_computed_by_different_kernels(kind: str) -> None:
    layer = make(kind)
    edge = layer.few_rows
    calls: list[str] = []
    few, many = layer.few, layer.many
    layer.few = Noted("few", few, calls)
    layer.many = Noted("many", many, calls)
    for count in (edge, edge + 1):
        layer(rows_of(count))
    assert calls == ["few", "many"]


@pytest.mark.parametrize("kind", linear.KINDS)
def test_any_leading_shape_is_kept(kind: str) -> None:
    layer = make(kind)
    rows = rows_of(6)
    assert torch.equal(layer(rows.view(2, 3, K)), layer(rows).view(2, 3, N))
    assert layer(rows[:1].view(1, 1, K)).shape == (1, 1, N)


@pytest.mark.parametrize("kind", linear.KINDS)
@pytest.mark.parametrize("count", [1, 40])
def test_a_bias_is_added(kind: str, count: int) -> None:
    bias = torch.arange(N).float()
    source: Blocks | Tensor = blocks_of() if kind == "blocks" else weight_of()
    with_bias = pack(source, bias, LinearPlan(kind), AMX)
    rows = rows_of(count)
    difference = with_bias(rows).float() - make(kind)(rows).float()
    assert torch.allclose(difference, bias.expand(count, N), atol=1.0)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("int4", (24, 192)), ("int4", (128, 96)), ("int8", (7, 33)), ("int4", (5, 7))],
)
def test_odd_shapes_fall_back_to_dense(kind: str, shape: tuple[int, int]) -> None:
    weight = weight_of(*shape)
    layer = pack(weight, None, LinearPlan(kind), AMX)
    assert layer.few is layer.many
    rows = rows_of(3, shape[1])
    wanted = rows.float() @ weight.t()
    assert torch.allclose(layer(rows).float(), wanted, atol=0.2, rtol=0.02)


def test_blocks_of_an_odd_shape_fall_back_to_dense() -> None:
    blocks = blocks_of(24, 64)
    layer = pack(blocks, None, LinearPlan("blocks"), AMX)
    assert layer.few is layer.many
    rows = rows_of(1, 64)
    wanted = rows.float() @ blocks.dense().t()
    assert torch.allclose(layer(rows).float(), wanted, atol=0.5, rtol=0.02)


def test_a_processor_without_vectors_computes_dense_in_float32() -> None:
    layer = make("blocks", processor=SCALAR)
    assert layer.few is layer.many
    assert layer.state()["few.dense.weight"].dtype == torch.float32


@pytest.mark.parametrize("kind", ["int4", "blocks"])
def test_the_four_bit_kernel_is_never_fed_float32(kind: str) -> None:
    layer = make(kind)
    wide = rows_of(1).float()
    assert layer(wide).dtype == torch.float32
    assert torch.equal(layer(wide), layer(wide.to(BF16)).float())


@pytest.mark.parametrize("kind", linear.KINDS)
@pytest.mark.parametrize("keep_dense", [True, False])
def test_a_state_makes_the_same_layer_again(kind: str, keep_dense: bool) -> None:
    layer = make(kind, keep_dense)
    state = {name: tensor.clone() for name, tensor in layer.state().items()}
    again = linear.from_state(state, CPU)
    for count in (1, 40):
        assert torch.equal(again(rows_of(count)), layer(rows_of(count)))
    assert again.held_bytes() == layer.held_bytes()


@pytest.mark.parametrize("kind", linear.KINDS)
def test_joined_layers_compute_the_parts_side_by_side(kind: str) -> None:
    sizes = (128, 64, 64)
    parts = [
        pack(
            blocks_of(size) if kind == "blocks" else weight_of(size),
            torch.full((size,), float(size)) if size == 64 else None,
            LinearPlan(kind),
            AMX,
        )
        for size in sizes
    ]
    whole: Any = join(parts)
    assert whole is not None
    for count in (1, 40):
        rows = rows_of(count)
        apart = torch.cat([part(rows) for part in parts], 1).float()
        assert torch.allclose(whole(rows).float(), apart, atol=1.0, rtol=0.01)
    held = sum(part.held_bytes() for part in parts)
    assert whole.held_bytes() == pytest.approx(held, abs=1024)


def test_plain_layers_are_joined_exactly() -> None:
    parts = [nn.Linear(8, 4), nn.Linear(8, 6, bias=False)]
    whole: Any = join(parts)
    assert whole is not None
    rows = torch.randn(3, 8)
    apart = torch.cat([part(rows) for part in parts], 1)
    assert torch.allclose(whole(rows), apart, atol=1e-6)


def test_layers_that_do_not_fit_are_not_joined() -> None:
    assert join([make("int4"), make("int8")]) is None
    assert join([make("int4"), nn.Linear(K, N)]) is None
    halves = [
        pack(weight_of(size), None, LinearPlan("int4"), AMX) for size in (128, 48)
    ]
    assert join(halves) is None  # a block of 64 rows would be torn
    assert join([nn.Linear(8, 4), nn.Linear(4, 4)]) is None


@pytest.mark.parametrize("bias", [False, True])
def test_a_head_in_two_bytes_a_number_loses_nothing_to_the_rows(bias: bool) -> None:
    weight = weight_of(8192, 64)
    added = torch.randn(8192) if bias else None
    head = pack(weight, added, LinearPlan("int8"), AMX)
    assert isinstance(head.few, Split)
    codes, scale = quantise_int8(weight)
    values = codes.float() * scale.float()[:, None]
    rows = rows_of(3, 64)
    rows[:, 5] *= 100  # an outlier costs the other columns no precision
    wanted = rows.float() @ values.t() + (0 if added is None else added)
    assert torch.allclose(head(rows).float(), wanted, rtol=0.008, atol=0.05)
    again = linear.from_state(head.state(), CPU)
    assert torch.equal(again(rows), head(rows))
    assert again.held_bytes() == head.held_bytes()
    assert torch.equal(
        head(torch.zeros_like(rows))[0].float(), head(rows * 0)[0].float()
    )
    halves = [pack(half, None, LinearPlan("int8"), AMX) for half in (weight, weight)]
    both: Any = join(halves)
    assert torch.equal(both(rows), torch.cat([half(rows) for half in halves], 1))


def test_a_row_with_nan_stays_alone_in_a_head() -> None:
    head = pack(weight_of(8192, 64), None, LinearPlan("int8"), AMX)
    rows = rows_of(2, 64)
    clean = head(rows)[1]
    rows[0, 7] = torch.nan
    found = head(rows)
    assert not torch.isfinite(found[0]).all()
    assert torch.equal(found[1], clean)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="fp3"):
        pack(weight_of(), None, LinearPlan("fp3"))


def test_this_processor_names_its_layout() -> None:
    assert linear.layout() == this_processor().layout
    assert torch.__version__ in linear.layout()


def test_scores_are_as_fine_as_float32_where_bfloat16_has_steps() -> None:
    """Two tokens of nearly the same logit must not come out equal."""
    if not this_processor().bfloat16:
        pytest.skip("this processor has no 8-bit product of two bytes a number")
    weight, bias = torch.ones(2, K), torch.tensor([0.0, 0.05])
    plan = LinearPlan("int8", dtype=BF16, scores=True)
    head = pack(weight, bias, plan, AMX)
    again = linear.from_state(head.state(), CPU)
    for layer in (head, again):
        logits = layer(torch.ones(1, K).to(BF16))[0]
        assert logits.dtype == torch.float32
        assert 0.04 < float(logits[1] - logits[0]) < 0.06
    coarse = make("int8")(torch.ones(1, K).to(BF16))
    assert coarse.dtype == BF16


class Watched(TorchFunctionMode):
    """Names of torch calls, and the most float32 numbers that one gave."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.widest = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.append(getattr(func, "__name__", ""))
        if isinstance(result, Tensor) and result.dtype == torch.float32:
            self.widest = max(self.widest, result.numel())
        return result


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_weights_are_rounded_some_rows_at_a_time(kind: str) -> None:
    """Or a vocabulary's would be calls of a tenth of a second beside streams."""
    weight = weight_of(1200, 1024).to(BF16)
    plan = LinearPlan(kind, keep_dense=False)
    with Watched() as calls:
        whole = pack(weight, None, plan, AMX)
    assert 0 < calls.widest <= PIECE_WEIGHTS < weight.numel()
    parts = [pack(weight[at : at + 400], None, plan, AMX) for at in (0, 400, 800)]
    rows = rows_of(2, 1024)
    assert torch.equal(whole(rows), torch.cat([part(rows) for part in parts], -1))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_values_are_made_only_where_they_are_kept(kind: str) -> None:
    for keep_dense in (True, False):
        with Watched() as calls:
            pack(weight_of(), None, LinearPlan(kind, keep_dense=keep_dense), AMX)
        assert ("mul_" in calls.names) == keep_dense
