from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurond.device import attention
from neurond.device.attention import KeyValue

DIM = 16
NUM_KV = 2


def plain(  # noqa: PLR0913  one sum, spelled out
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """[H_kv, G, T, D] of the last T positions in float64, a query at a time."""
    query, key, value = query.double(), key[0].double(), value[0].double()
    num_keys, seen = key.shape[1], torch.zeros(*query.shape[:-1], value.shape[-1])
    for at in range(query.shape[2]):
        last = num_keys - query.shape[2] + at
        first = max(0, last + 1 - window) if window else 0
        keys, values = key[:, first : last + 1], value[:, first : last + 1]
        scores = torch.einsum("hgd,hkd->hgk", query[:, :, at], keys) * 0.3
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        if sinks is not None:
            scores = torch.cat((scores, sinks.double().unsqueeze(-1)), -1)
        weights = scores.softmax(-1)[..., : keys.shape[1]]
        seen[:, :, at] = torch.einsum("hgk,hkd->hgd", weights, values).float()
    return seen


def tensors(
    past: list[int], length: int, group: int, repeated: bool
) -> tuple[torch.Tensor, list[KeyValue]]:
    """A query and its KV in stretches; `repeated` keys score nearly alike."""
    torch.manual_seed(sum(past) + 7 * length + group)
    query = torch.randn(NUM_KV, group, length, DIM) * 3
    parts = []
    for count in [*past, length]:
        pair = [torch.randn(1, NUM_KV, count, DIM) * 2 for _ in range(2)]
        if repeated:
            pair = [one[:, :, :1] + 1e-3 * one for one in pair]
        parts.append((pair[0], pair[1]))
    return query, parts


SHAPES = {
    "past": st.lists(st.integers(1, 30), max_size=4),
    "group": st.sampled_from([1, 3]),
    "repeated": st.booleans(),
    "with_sinks": st.booleans(),
}


@settings(max_examples=15, deadline=None)
@given(length=st.integers(2, 12), window=st.sampled_from([0, 5, 12]), **SHAPES)
def test_chunks_equal_plain_arithmetic(  # noqa: PLR0913
    past: list[int],
    length: int,
    group: int,
    window: int,
    repeated: bool,
    with_sinks: bool,
) -> None:
    query, parts = tensors(past, length, group, repeated)
    sinks = torch.randn(NUM_KV, group) if with_sinks else None
    column = None if sinks is None else sinks.unsqueeze(-1)
    end = sum(past) + length
    mask = attention.window_mask(sum(past), end, 0, window, query)
    if window:
        found = attention.masked_chunk(query, parts, mask, 0.3, column)
    else:
        found = attention.chunk(query, parts[:-1], parts[-1], 0.3, column)
    wanted = plain(query, *attention.joined(parts), window, None, sinks)
    assert torch.allclose(found, wanted, atol=1e-4)
    for softcap in (None, 5.0):
        exact = attention.exact(query, parts, mask, 0.3, softcap=softcap, sinks=column)
        wanted = plain(query, *attention.joined(parts), window, softcap, sinks)
        assert torch.allclose(exact, wanted, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(**SHAPES)
def test_rows_equal_plain_arithmetic(
    past: list[int], group: int, repeated: bool, with_sinks: bool
) -> None:
    query, parts = tensors(past, 1, group, repeated)
    sinks = torch.randn(NUM_KV, group) if with_sinks else None
    wanted = plain(query, *attention.joined(parts), 0, None, sinks)[:, :, 0]
    line = query.transpose(0, 2).transpose(1, 2)[:1].reshape(1, NUM_KV, group, DIM)
    found = attention.row(line, parts, 0.3, sinks)[0]
    assert torch.allclose(found, wanted, atol=1e-4)
    if not with_sinks:
        keys, values = attention.joined(parts)
        [alike] = attention.rows([line], [keys], [values], 0.3)
        assert torch.allclose(alike[0], wanted, atol=1e-4)


@pytest.mark.parametrize("count", [255, 256, 257, 600])
def test_long_chunks_are_written_out_in_pieces(count: int) -> None:
    query, parts = tensors([3], count, 1, repeated=False)
    mask = attention.window_mask(3, 3 + count, 0, 0, query)
    found = attention.exact(query, parts, mask, 0.3, softcap=None, sinks=None)
    wanted = attention.chunk(query, parts[:-1], parts[-1], 0.3, None)
    assert torch.allclose(found, wanted, atol=1e-4)
