"""4-bit blocks, checked against gguf's own dequantisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from neurond.device import blocks
from neurond.device.blocks import Blocks

KINDS = ("Q4_0", "Q4_1")


def quantised(kind: str, rows: int, columns: int, seed: int = 1) -> Any:
    weights = np.random.default_rng(seed).normal(0, 0.1, (rows, columns))
    return quants.quantize(weights.astype(np.float32), GGMLQuantizationType[kind])


def made(kind: str, rows: int = 8, columns: int = 96) -> Blocks:
    return blocks.read(torch.from_numpy(quantised(kind, rows, columns)), kind)


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    seed=st.integers(0, 1 << 20),
)
def test_blocks_are_what_gguf_dequantises(
    kind: str, rows: int, groups: int, seed: int
) -> None:
    raw = quantised(kind, rows, 32 * groups, seed)
    read = blocks.read(torch.from_numpy(raw), kind)
    wanted = quants.dequantize(raw, GGMLQuantizationType[kind])
    assert torch.equal(read.dense(), torch.from_numpy(wanted))
    assert read.shape == wanted.shape
    assert read.q.max() <= 15


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_comes_back_bit_by_bit(kind: str) -> None:
    before = made(kind)
    stored = blocks.to_stored("layer.q_proj", before)
    assert sum(t.numel() * t.element_size() for t in stored.values()) == 8 * 3 * 20
    after = blocks.from_stored("layer.q_proj", stored)
    for part in blocks.PARTS:
        assert torch.equal(getattr(after, part), getattr(before, part))
    assert blocks.is_exact(before)


def test_a_scale_whose_minimum_leaves_half_precision_is_not_exact() -> None:
    before = made("Q4_0")
    scale = torch.full_like(before.scale, 60000.0)
    assert not blocks.is_exact(Blocks(before.q, scale, scale * -8))


def test_rows_of_q_and_k_are_put_back_in_order() -> None:
    heads, half = 2, 4
    order = torch.arange(heads * half * 2)
    # as the file has them: the two halves of a head interleaved
    mixed = order.view(heads, 2, half).transpose(1, 2).reshape(-1)
    before = made("Q4_1", rows=16)
    file = Blocks(*(getattr(before, part)[mixed] for part in blocks.PARTS))
    after = blocks.unpermute(file, heads)
    for part in blocks.PARTS:
        assert torch.equal(getattr(after, part), getattr(before, part))
