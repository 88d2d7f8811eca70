"""torch's FlashAttention over a page table: one call per layer for any mix of works.

Device process, CUDA. `torch.nn.attention.varlen.varlen_attn` reads keys and values as
pages [num_pages, page_tokens, H_kv, D] through an int32 table [S, P]; `seqused_k` says
how many tokens each segment has, and a causal query is aligned to the end of them.
Older torch has the function without these arguments: then there is no kernel.

Invariant: needs half precision, equal dimensions of keys and values, pages of a
multiple of 256 tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from neurond.device.inputs import Inputs
from neurond.device.pool import Group

if TYPE_CHECKING:
    from neurond.device.paged import PagedLayer

_NEEDED = frozenset(("block_table", "seqused_k", "enable_gqa", "window_size"))
_MAX_DIM = 256
_DTYPES = (torch.bfloat16, torch.float16)


class Kernel:
    """`num_splits` = 1 keeps a row's result apart from the rest of the batch."""

    def __init__(
        self,
        function: Callable[..., Any],
        page_tokens: int,
        num_splits: int | None,
        dtypes: tuple[torch.dtype, ...] = _DTYPES,
    ) -> None:
        self._dtypes = dtypes
        self._function = function
        self._page_tokens = page_tokens
        taken = inspect.signature(function).parameters
        self._more = {"num_splits": num_splits} if "num_splits" in taken else {}

    def takes(self, group: Group, dtype: torch.dtype) -> bool:
        shape = group.shape
        return (
            dtype in self._dtypes
            and shape.key_dim == shape.value_dim
            and shape.key_dim % 8 == 0
            and shape.key_dim <= _MAX_DIM
        )

    def attend(
        self,
        inputs: Inputs,
        layer: PagedLayer,
        query: torch.Tensor,
        scale: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """`query` [1, H, N, D]; the output is [N, H, D]."""
        keys, values = layer.group.tokens(layer.index)
        paged = (-1, self._page_tokens, *keys.shape[1:])
        window = layer.group.shape.window
        aux = {"return_aux": _with_scores()} if sinks is not None else {}
        seen: Any = self._function(
            query[0].transpose(0, 1).contiguous(),
            keys.view(paged),
            values.view(paged),
            inputs.starts,
            None,
            inputs.longest_query,
            inputs.longest_past,
            scale=scale,
            # as many tokens to the left, besides the query's own
            window_size=(window - 1, 0) if window else (-1, 0),
            enable_gqa=True,
            seqused_k=inputs.used,
            block_table=inputs.table,
            **aux,
            **self._more,
        )
        if sinks is None:
            return seen
        return _with_sinks(seen[0], seen[1], sinks)


def kernel_for(
    device: torch.device, page_tokens: int, *, invariant: bool
) -> Kernel | None:
    """None where torch has no such kernel."""
    if device.type != "cuda":
        return None
    from torch.nn.attention.varlen import varlen_attn

    if not inspect.signature(varlen_attn).parameters.keys() >= _NEEDED:
        return None
    return Kernel(varlen_attn, page_tokens, 1 if invariant else None)


def _with_scores() -> Any:
    from torch.nn.attention.varlen import AuxRequest

    return AuxRequest(lse=True)


def _with_sinks(
    seen: torch.Tensor, scores: torch.Tensor, sinks: torch.Tensor
) -> torch.Tensor:
    """`scores` is the kernel's log-sum-exp, [H, N]; a sink is one more score."""
    share = torch.sigmoid(scores - sinks.float()[:, None])
    return seen * share.transpose(0, 1).unsqueeze(-1).to(seen.dtype)
