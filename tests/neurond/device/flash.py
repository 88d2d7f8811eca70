"""What `torch.nn.attention.varlen.varlen_attn` means, in plain arithmetic."""

from __future__ import annotations

from typing import Any

import torch


def reference(  # noqa: PLR0913  the signature is torch's
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: torch.Tensor,
    block_table: torch.Tensor,
) -> Any:
    """Causal, aligned to the end of the keys; scores' log-sum-exp is [H, N]."""
    assert cu_seq_k is None
    assert enable_gqa
    assert window_size[1] == 0
    pieces, scores = [], []
    starts = cu_seq_q.tolist()
    assert max(b - a for a, b in zip(starts, starts[1:], strict=False)) <= max_q
    for row, used in enumerate(seqused_k.tolist()):
        assert used <= max_k
        asked = query[starts[row] : starts[row + 1]].transpose(0, 1)
        group = asked.shape[0] // key.shape[2]
        pages = block_table[row].long()
        keys, values = (
            pool[pages].flatten(0, 1)[:used].transpose(0, 1).repeat_interleave(group, 0)
            for pool in (key, value)
        )
        weights = asked @ keys.transpose(1, 2) * scale
        weights = weights.masked_fill(
            _hidden(asked.shape[1], used, window_size[0]), -1e9
        )
        pieces.append((weights.softmax(-1) @ values).transpose(0, 1))
        scores.append(weights.logsumexp(-1))
    seen = torch.cat(pieces)
    return seen if return_aux is None else (seen, torch.cat(scores, 1))


def _hidden(num_queries: int, num_keys: int, left: int) -> torch.Tensor:
    at = torch.arange(num_keys - num_queries, num_keys)[:, None]
    keys = torch.arange(num_keys)[None]
    return (keys > at) | ((keys < at - left) if left >= 0 else torch.tensor(False))
