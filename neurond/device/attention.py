"""Attention of packed rows over paged KV: the arithmetic.

Device process, pure. Two exact ways:

- `row`, `rows` and `chunk` read KV where it lies: one call of torch's flash kernel for
  the CPU per stretch of it, merged by the log-sum-exp of their scores. A chunk is its
  past, all of which every query sees, and itself, causal; one that a window cuts has a
  mask.
- `exact` writes the scores out, in float32. It knows soft caps, values narrower than
  keys, and devices that have no kernel with tables.

The heads of one KV head (a group of G) are folded into rows or heads, so that KV is
never repeated.

Invariant: a query sees exactly the keys of its own sequence up to its own position,
within the window; no length is rounded up.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Listing
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

KeyValue = tuple[torch.Tensor, torch.Tensor]
"""[1, H_kv, L, D_k] and [1, H_kv, L, D_v]."""

_QUERIES_AT_ONCE = 256
_flash = torch._scaled_dot_product_flash_attention_for_cpu


def rows(
    queries: Iterable[torch.Tensor],
    keys: Listing[torch.Tensor],
    values: Listing[torch.Tensor],
    scale: float | None,
) -> list[torch.Tensor]:
    """`row` for many of one stretch each, without a detour: most steps are this."""
    return list(
        map(partial(scaled_dot_product_attention, scale=scale), queries, keys, values)
    )


def row(
    query: torch.Tensor,
    parts: Listing[KeyValue],
    scale: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One query position, [1, H_kv, G, D], over all of `parts`; of the same shape."""
    if len(parts) == 1 and sinks is None:
        key, value = parts[0]
        return _flash(query, key, value, scale=scale)[0]
    found = [_flash(query, key, value, scale=scale) for key, value in parts]
    return _merge(found, sinks)


def chunk(
    query: torch.Tensor,
    past: Listing[KeyValue],
    own: KeyValue,
    scale: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """T positions, [H_kv, G, T, D], over `past` and, causal, over their own KV."""
    num_kv, group, length, dim = query.shape
    folded = query.reshape(1, num_kv, group * length, dim)
    found = []
    for key, value in past:
        seen, scores = _flash(folded, key, value, scale=scale)
        found.append((seen.reshape(query.shape), scores.view(num_kv, group, length)))
    found.append(_flash(query, *_shared(own, group), 0.0, True, scale=scale))
    return found[0][0] if len(found) == 1 and sinks is None else _merge(found, sinks)


def masked_chunk(
    query: torch.Tensor,
    parts: Listing[KeyValue],
    mask: torch.Tensor,
    scale: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """T positions over all of `parts`; `mask` [T, L] is what is added to the scores."""
    own = _shared(joined(parts), query.shape[1])
    found = _flash(query, *own, attn_mask=mask, scale=scale)
    return found[0] if sinks is None else _merge([found], sinks)


def exact(
    query: torch.Tensor,
    parts: Listing[KeyValue],
    mask: torch.Tensor | None,
    scale: float | None,
    *,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """[H_kv, G, T, D_k] to [H_kv, G, T, D_v], the scores written out."""
    key, value = joined(parts)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    pieces = []
    for begin in range(0, query.shape[2], _QUERIES_AT_ONCE):
        rows = query[:, :, begin : begin + _QUERIES_AT_ONCE]
        scores = (rows @ key[0].transpose(1, 2)[:, None]).float() * scale
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        if mask is not None:
            scores = scores + mask[begin : begin + _QUERIES_AT_ONCE]
        weights = _softmax(scores, sinks).to(value.dtype)
        pieces.append(weights @ value[0][:, None])
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)


def window_mask(
    past: int, end: int, low: int, window: int, like: torch.Tensor
) -> torch.Tensor:
    """What queries [past, end) add to the scores of keys [low, end): 0 or -inf.

    `window` = 0: causal only. Dtype and device are those of `like`.
    """
    queries = torch.arange(past, end, device=like.device)[:, None]
    keys = torch.arange(low, end, device=like.device)[None]
    hidden = keys > queries
    if window:
        hidden |= keys <= queries - window
    mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(hidden, -torch.inf)


def joined(parts: Listing[KeyValue]) -> KeyValue:
    if len(parts) == 1:
        return parts[0]
    keys = torch.cat([key for key, _ in parts], 2)
    return keys, torch.cat([value for _, value in parts], 2)


def _shared(own: KeyValue, group: int) -> KeyValue:
    """[H_kv, G, L, D] that all heads of a group share, without a copy."""
    key, value = (tensor[0].unsqueeze(1) for tensor in own)
    return key.expand(-1, group, -1, -1), value.expand(-1, group, -1, -1)


def _merge(
    found: Listing[tuple[torch.Tensor, torch.Tensor]], sinks: torch.Tensor | None
) -> torch.Tensor:
    """Outputs with the log-sum-exp of their scores, as if over all keys at once.

    A sink is one more score with no value; `sinks` broadcasts to the log-sum-exps.
    """
    (seen, scores), *others = found
    for other, more in others:
        share = torch.sigmoid(more - scores).unsqueeze(-1)
        seen = torch.lerp(seen, other, share.to(seen.dtype))
        scores = torch.logaddexp(scores, more)
    if sinks is None:
        return seen
    return seen * torch.sigmoid(scores - sinks).unsqueeze(-1).to(seen.dtype)


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.unsqueeze(-1).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, column), -1).softmax(-1)[..., :-1]
