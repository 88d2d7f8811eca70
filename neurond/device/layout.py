"""What the layers of a loaded model keep between forwards.

Device process. A trial run with transformers' own cache shows it: which kind of cache
each layer made, its heads and dimensions, its dtype. The run's logits are also the
first sign of damaged weights, and what the paged forward is compared with.

Invariant: a kind of layer that isn't known here gives no layout; the model is then
served with caches of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import cache_utils
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from neurond.device.pool import LayerShape

TRIAL_IDS = tuple(range(1, 25))
PLACEHOLDER: Any = getattr(cache_utils, "DummyLayer", None)
"""What stands for a layer that keeps nothing; older transformers has none."""

_PAGED = (DynamicLayer, DynamicSlidingWindowLayer)


@dataclass(frozen=True, slots=True)
class StateShape:
    """Recurrent tensors of one sequence in one layer: [1, …] samples by state index."""

    conv: dict[int, torch.Tensor]
    recurrent: dict[int, torch.Tensor]

    @property
    def num_bytes(self) -> int:
        return sum(t.nbytes for t in (*self.conv.values(), *self.recurrent.values()))


@dataclass(frozen=True, slots=True)
class Layout:
    """One entry per layer: what it keeps per token, or as a state, or neither."""

    dtype: torch.dtype
    shapes: tuple[LayerShape | None, ...]
    states: tuple[StateShape | None, ...]

    @property
    def state_bytes(self) -> int:
        return sum(state.num_bytes for state in self.states if state)


@dataclass(frozen=True, slots=True)
class Trial:
    """Logits [T, V] of the model as it was loaded, and its cache."""

    logits: torch.Tensor
    cache: Any


def try_out(module: Any, device: torch.device, told: tuple[int, ...]) -> Trial:
    """One forward over a few ids, transformers' own way."""
    cache = DynamicCache(config=module.config.get_text_config(decoder=True))
    ids = torch.tensor([told], device=device)
    with torch.inference_mode():
        positions = torch.arange(len(told), device=device)[None]
        output = module(
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True
        )
    return Trial(output.logits[0], cache)


def layout_of(module: Any, cache: Any) -> Layout | None:
    """From the cache of a trial run."""
    text = module.config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None) or ()
    if "chunked_attention" in kinds or not module._can_set_attn_implementation():
        return None
    shapes = [_shape(layer) for layer in cache.layers]
    states = [_state(layer) for layer in cache.layers]
    for layer, shape, state in zip(cache.layers, shapes, states, strict=True):
        if not shape and not state and type(layer) is not PLACEHOLDER:
            return None
    dtypes = {layer.keys.dtype for layer in cache.layers if type(layer) in _PAGED}
    if len(dtypes) != 1:
        return None
    return Layout(dtypes.pop(), tuple(shapes), tuple(states))


def _shape(layer: Any) -> LayerShape | None:
    if type(layer) not in _PAGED or layer.keys is None or layer.keys.dim() != 4:
        return None
    key, value = layer.keys.shape, layer.values.shape
    if key[1] != value[1]:
        return None
    return LayerShape(key[1], key[3], value[3], getattr(layer, "sliding_window", 0))


def _state(layer: Any) -> StateShape | None:
    if type(layer) is not LinearAttentionLayer:
        return None
    conv = {i: t for i, t in layer.conv_states.items() if t is not None}
    recurrent = {i: t for i, t in layer.recurrent_states.items() if t is not None}
    return StateShape(conv, recurrent)
