"""Experts of a mixture, over tiles of one size: invariant numerics.

Device process. How many of a forward's tokens an expert gets depends on the company;
here it computes them 16 rows at a time, filled up with zeros, and a token's experts are
added in the order in which the router named them. Works for every family whose experts
are stacked tensors under transformers' interface for them.

Invariant: what a token gets is independent of the other tokens, as far as the rows of a
product over a tile are.
Source: Shazeer et al. 2017, "Outrageously Large Neural Networks".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "cortex_tiles"
_TILE_ROWS = 16


def use_tiles(module: Any) -> None:
    """For the experts of a transformers model, if it has any that can be told."""
    if module._can_set_experts_implementation():
        module.set_experts_implementation(NAME)


def tiled_experts(
    experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """[S, H] by experts and weights [S, K] to [S, H]; transformers' protocol."""
    given = hidden_states.new_zeros((*top_k_index.shape, hidden_states.shape[-1]))
    for index in sorted(set(top_k_index.flatten().tolist())):
        tokens, places = torch.where(top_k_index == index)
        for begin in range(0, len(tokens), _TILE_ROWS):
            part = slice(begin, begin + _TILE_ROWS)
            rows = _computed(experts, index, hidden_states[tokens[part]])
            given[tokens[part], places[part]] = rows
    weighted = (given * top_k_weights.unsqueeze(-1)).unbind(1)
    total = weighted[0]
    for more in weighted[1:]:
        total = total + more
    return total.to(hidden_states.dtype)


def _computed(experts: Any, index: int, rows: Tensor) -> Tensor:
    """Up to a tile of rows by one expert."""
    tile = rows.new_zeros((_TILE_ROWS, rows.shape[1]))
    tile[: len(rows)] = rows
    if experts.has_gate:
        inner = experts._apply_gate(_product(experts, "gate_up_proj", index, tile))
    else:
        inner = experts.act_fn(_product(experts, "up_proj", index, tile))
    out = _product(experts, "down_proj", index, inner)
    if getattr(experts, "has_post_expert_norm", False):
        out = experts.post_expert_norm(out)
    return out[: len(rows)]


def _product(experts: Any, name: str, index: int, rows: Tensor) -> Tensor:
    weight = getattr(experts, name)[index]
    bias = getattr(experts, f"{name}_bias")[index] if experts.has_bias else None
    return linear(rows, weight.t() if experts.is_transposed else weight, bias)


ALL_EXPERTS_FUNCTIONS.register(NAME, tiled_experts)
