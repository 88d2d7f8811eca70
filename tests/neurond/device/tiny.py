"""Tiny random checkpoints, made on the spot: noise as text, exact as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

torch.set_num_threads(1)  # before the first use: idle threads of torch's spin

VOCAB_SIZE = 512
EOS = 511
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "eos_token_id": EOS,
    "bos_token_id": None,
    "pad_token_id": None,
}
FAMILIES = ("llama", "qwen3", "qwen3_5")


def build(family: str, folder: Path) -> Path:
    """A checkpoint of the family in float32."""
    torch.manual_seed(7)
    model = _make(family).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                parameter.mul_(8)  # spread the logits, so that greedy tokens vary
    model.save_pretrained(folder)
    return folder


def _make(family: str) -> Any:
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**_COMMON, num_hidden_layers=2))
    if family == "qwen3":
        untied = {**_COMMON, "tie_word_embeddings": False}
        return Qwen3ForCausalLM(Qwen3Config(**untied, num_hidden_layers=2))
    config = Qwen3_5TextConfig(
        **_COMMON,
        num_hidden_layers=4,  # three recurrent layers, then one with full attention
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
    )
    return Qwen3_5ForCausalLM(config)


def reference(
    folder: Path,
    ids: tuple[int, ...],
    num_tokens: int,
    *,
    eos: int = EOS,
    dtype: torch.dtype | str = "auto",
) -> list[int]:
    """What transformers' own `generate` emits, greedy, without the EOS."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    prompt = torch.tensor([ids])
    with torch.inference_mode():
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    emitted: list[int] = output[0, len(ids) :].tolist()
    return emitted[:-1] if emitted[-1] == eos else emitted
