"""Sizes of models, and of what `bench.gpu_engine` asks of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_MIB, _GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Shape:
    """A model and what is asked of it."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    prompt: int
    long_prompt: int
    tokens: int
    kv_bytes: int
    buffer_bytes: int

    def config(self) -> Any:
        from transformers import LlamaConfig

        return LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocab,
            max_position_embeddings=self.context,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=0,
        )


SHAPES = {
    "8b": Shape(
        *(32, 4096, 14336, 32, 8, 128_256),
        *(16_384, 128, 8192, 256),
        *(10 * _GIB, 2 * _GIB),
    ),
    "1b": Shape(
        *(16, 2048, 8192, 32, 8, 128_256), *(16_384, 128, 8192, 256), *(4 * _GIB, _GIB)
    ),
    "tiny": Shape(*(2, 64, 128, 4, 2, 512), *(512, 16, 200, 24), *(4 * _MIB, 4 * _MIB)),
}
