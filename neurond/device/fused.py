"""Decoder layers of common dense models, with fewer and larger operations.

Device process. On a CPU a step of a small model spends more time between its matrix
products than in them. `fuse` swaps the decoder layers of the families it knows, by
exact class, for one that does the same arithmetic:

    norm · qkv (one product) · rope of q and k at once · cache, attention as registered
         · output (one product) + residual
    norm · gate and up (one product) · silu(gate) * up · down (one product) + residual

The weights are those of the transformers module and replace it: nothing is held twice.
Cache and attention function come from outside, as for any transformers layer. Layers
must be packed (`linear.pack`) before they are fused.

Invariant: results are equal up to rounding; a layer of any other class is left alone.
Sources: RMSNorm, Zhang and Sennrich 2019; rotary embedding, Su et al. 2021; gated
linear units, Shazeer 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from neurond.device import linear
from neurond.device.gated import Gated, SideBySide
from neurond.device.lean import LeanForward
from neurond.device.linear import PackedLinear
from neurond.device.norms import HeadNorms, RowNorm

_EAGER: dict[type, Callable[..., Any]] = {
    llama.LlamaDecoderLayer: llama.eager_attention_forward,
    mistral.MistralDecoderLayer: mistral.eager_attention_forward,
    qwen2.Qwen2DecoderLayer: qwen2.eager_attention_forward,
    qwen3.Qwen3DecoderLayer: qwen3.eager_attention_forward,
}


class Frame:
    """What all layers of one forward share: rotary tables and the attention function.

    transformers hands every layer the same pair of tables; they are made ready by the
    first layer that sees them.
    """

    def __init__(self, config: Any, eager: Callable[..., Any]) -> None:
        self._config = config
        self._eager = eager
        self._tables: tuple[Tensor, Tensor] | None = None
        self.cos = self.sin = torch.empty(0)
        self.attend = eager

    def open(self, tables: tuple[Tensor, Tensor]) -> None:
        """tables: cos, sin [B or 1, T, D]; sin is kept with its first half negated."""
        if tables is self._tables:
            return
        self._tables = tables
        cos, sin = tables
        half = sin.shape[-1] // 2
        signed = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        self.cos, self.sin = cos.unsqueeze(2), signed.unsqueeze(2)
        self.attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self._config._attn_implementation, self._eager
        )


class FusedLayer(nn.Module):
    """A decoder layer; takes and gives what transformers' own does."""

    def __init__(self, layer: Any, frame: Frame) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.self_attn = attention
        parts = _take(attention, ("q_proj", "k_proj", "v_proj"))
        self.qkv = linear.join(parts) or SideBySide(parts)
        self.gated = Gated(*_take(mlp, ("gate_proj", "up_proj")))
        self.o_proj, self.down_proj = attention.o_proj, mlp.down_proj
        self.input_norm = RowNorm(layer.input_layernorm)
        self.post_norm = RowNorm(layer.post_attention_layernorm)
        self.head_norms = HeadNorms.of(attention)
        self._frame = frame
        self._layer_idx = int(attention.layer_idx)
        self._scaling = attention.scaling
        self._window = _window(layer)
        self._head_dim = int(attention.head_dim)
        self._set_widths(attention)
        self._qkv = linear.rows_of(self.qkv)
        self._output, self._down = _plus_of(self.o_proj), _plus_of(self.down_proj)

    def _set_widths(self, attention: Any) -> None:
        query = self.o_proj.in_features // self._head_dim
        self._num_heads = query
        self._num_kv_heads = query // int(attention.num_key_value_groups)
        self._num_rotated = query + self._num_kv_heads

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **more: Any,
    ) -> Tensor:
        """hidden_states [B, T, H], a new tensor of the same shape out."""
        assert position_embeddings is not None
        self._frame.open(position_embeddings)
        batch, length, width = hidden_states.shape
        rows = hidden_states.view(-1, width)
        query, key, value = self._heads(rows, batch, length)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self._layer_idx)
        attended, _ = self._frame.attend(
            self.self_attn,
            query,
            key,
            value,
            attention_mask,
            dropout=0.0,
            scaling=self._scaling,
            sliding_window=self._window,
            position_ids=position_ids,
            **more,
        )
        rows = self._output(attended.reshape(rows.shape[0], -1), rows)
        rows = self._down(self.gated.forward(self.post_norm.rows(rows)), rows)
        return rows.view(batch, length, width)

    def _heads(
        self, rows: Tensor, batch: int, length: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value [B, heads, T, D], the first two with their positions."""
        frame = self._frame
        joined = self._qkv(self.input_norm.rows(rows))
        joined = joined.view(batch, length, -1, self._head_dim)
        rotated = joined.narrow(2, 0, self._num_rotated)
        if self.head_norms is not None:
            rotated = self.head_norms.heads(rotated)
        turned = rotated.roll(self._head_dim // 2, -1)
        rotated = (rotated * frame.cos).addcmul_(turned, frame.sin)
        heads, kv_heads = self._num_heads, self._num_kv_heads
        return (
            rotated.narrow(2, 0, heads).transpose(1, 2),
            rotated.narrow(2, heads, kv_heads).transpose(1, 2),
            joined.narrow(2, self._num_rotated, kv_heads).transpose(1, 2),
        )


def can_fuse(module: Any) -> bool:
    """Whether all decoder layers of a causal language model can be replaced."""
    layers = getattr(getattr(module, "model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return False
    return all(_can_fuse_layer(layer) for layer in layers)


def fuse(module: Any) -> int:
    """Replaces the decoder layers in place. How many: 0 for a model it doesn't know."""
    if not can_fuse(module):
        return 0
    body = module.model
    frame = Frame(body.config, _EAGER[type(body.layers[0])])
    for index, layer in enumerate(body.layers):
        body.layers[index] = FusedLayer(layer, frame).eval()
    body.norm = RowNorm(body.norm)
    body.forward = LeanForward(body)
    return len(body.layers)


def _can_fuse_layer(layer: Any) -> bool:
    if type(layer) not in _EAGER:
        return False
    silu = type(layer.mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")
    products = [layer.self_attn.o_proj, layer.mlp.down_proj]
    return silu and all(isinstance(p, nn.Linear | PackedLinear) for p in products)


def _take(owner: Any, names: Sequence[str]) -> list[nn.Module]:
    """The named layers, taken off their owner."""
    parts = [getattr(owner, name) for name in names]
    for name in names:
        delattr(owner, name)
    return parts


def _plus_of(layer: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The product of rows, and a second tensor added."""
    if isinstance(layer, PackedLinear):
        return layer.plus
    return lambda rows, other: layer.forward(rows).add_(other)


def _window(layer: Any) -> int | None:
    """The layer's sliding window; Llama has none, whatever its config says."""
    if type(layer) is llama.LlamaDecoderLayer:
        return None
    if type(layer) is mistral.MistralDecoderLayer:
        told: int | None = getattr(layer.self_attn.config, "sliding_window", None)
        return told
    window: int | None = layer.self_attn.sliding_window
    return window
