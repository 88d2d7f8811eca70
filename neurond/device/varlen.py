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
    """`num_splits` = 1 keeps a row's result apart from the rest of the batch.

    `gives_starts`: where keys would start without a table is passed on as well; some
    versions ask for it, others refuse it, and none reads it.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        page_tokens: int,
        num_splits: int | None,
        dtypes: tuple[torch.dtype, ...] = _DTYPES,
        *,
        gives_starts: bool = False,
    ) -> None:
        self._gives_starts = gives_starts
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
        window = layer.group.shape.window
        aux = {"return_aux": _with_scores()} if sinks is not None else {}
        packed = query[0].transpose(0, 1).contiguous()
        tokens = layer.group.tokens(layer.index)
        seen = self._call(inputs, packed, *tokens, scale=scale, window=window, **aux)
        if sinks is None:
            return seen
        return _with_sinks(seen[0], seen[1], sinks)

    def works(self, device: torch.device) -> bool:
        """Whether this version of torch takes such a call, and what comes is right."""
        size = (2 * self._page_tokens, 1, 64)
        keys, values = (
            torch.randn(size, device=device, dtype=self._dtypes[0]) for _ in range(2)
        )
        query = torch.randn((2, 2, 64), device=device, dtype=self._dtypes[0])
        inputs = _two_rows_on_page_one(device)
        try:
            seen = self._call(inputs, query, keys, values, scale=0.125, window=0)
        except RuntimeError:
            return False
        first = slice(self._page_tokens, self._page_tokens + 5)
        last = (query[1].float() @ keys[first, 0].float().T * 0.125).softmax(-1)
        wanted = last @ values[first, 0].float()
        return torch.allclose(seen[1].float(), wanted, atol=0.05)

    def _call(
        self,
        inputs: Inputs,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        scale: float | None,
        window: int,
        **more: Any,
    ) -> Any:
        paged = (-1, self._page_tokens, *keys.shape[1:])
        return self._function(
            query,
            keys.view(paged),
            values.view(paged),
            inputs.starts,
            inputs.starts if self._gives_starts else None,
            inputs.longest_query,
            inputs.longest_past,
            scale=scale,
            # as many tokens to the left, besides the query's own
            window_size=(window - 1, 0) if window else (-1, 0),
            enable_gqa=True,
            seqused_k=inputs.used,
            block_table=inputs.table,
            **more,
            **self._more,
        )


def kernel_for(
    device: torch.device, page_tokens: int, *, invariant: bool
) -> Kernel | None:
    """None where torch has no such kernel."""
    if device.type != "cuda":
        return None
    from torch.nn.attention.varlen import varlen_attn

    if not inspect.signature(varlen_attn).parameters.keys() >= _NEEDED:
        return None
    splits = 1 if invariant else None
    for gives in (False, True):
        kernel = Kernel(varlen_attn, page_tokens, splits, gives_starts=gives)
        if kernel.works(device):
            return kernel
    return None


def _two_rows_on_page_one(device: torch.device) -> Inputs:
    """Two queries that are the last of five tokens."""
    nothing = torch.empty(0, device=device)

    def ints(*numbers: int) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=device)

    return Inputs(
        nothing,
        nothing,
        nothing,
        nothing,
        starts=ints(0, 2),
        used=ints(5),
        table=ints(1)[None],
        longest_query=2,
        longest_past=5,
    )


def _with_scores() -> Any:
    from torch.nn.attention.varlen import AuxRequest

    return AuxRequest(lse=True)


def _with_sinks(
    seen: torch.Tensor, scores: torch.Tensor, sinks: torch.Tensor
) -> torch.Tensor:
    """`scores` is the kernel's log-sum-exp, [H, N]; a sink is one more score."""
    share = torch.sigmoid(scores - sinks.float()[:, None])
    return seen * share.transpose(0, 1).unsqueeze(-1).to(seen.dtype)
