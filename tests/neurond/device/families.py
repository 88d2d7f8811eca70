"""Tiny random models of the families that are served, in float32, made in memory."""

from __future__ import annotations

from collections.abc import Sequence as Listing
from typing import Any

import torch
import transformers

torch.set_num_threads(1)  # before the first use: idle threads of torch's spin

VOCAB_SIZE = 512
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_NO_DIM = {"head_dim": None}
_RECURRENT = {
    "num_hidden_layers": 4,  # three recurrent layers, then one with full attention
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "head_dim": None,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "qwen3_moe": ("Qwen3Moe", _MOE),
    "qwen3_5": ("Qwen3_5", _RECURRENT),
    "gemma2": ("Gemma2", {"sliding_window": 12, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3", {"sliding_window": 12, "layer_types": [_SLIDING, _FULL]}),
    "mistral": ("Mistral", {"sliding_window": 12}),
    "phi": ("Phi", _NO_DIM),
    "phi3": ("Phi3", {"pad_token_id": 0, **_NO_DIM}),
    "olmo2": ("Olmo2", _NO_DIM),
    "olmo3": (
        "Olmo3",
        {"sliding_window": 12, "layer_types": [_SLIDING, _FULL], **_NO_DIM},
    ),
    "gpt_oss": (
        "GptOss",
        {
            "sliding_window": 12,
            "layer_types": [_SLIDING, _FULL],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "deepseek_v3": ("DeepseekV3", _LATENT),
}
"""By name: prefix of transformers' classes, and what differs from the common sizes."""


def build(name: str, **more: Any) -> Any:
    prefix, different = FAMILIES[name]
    return make(prefix, **common(**{**different, **more}))


def common(**different: Any) -> dict[str, Any]:
    """The common sizes, but for what differs."""
    return {**_COMMON, **different}


def make(prefix: str, **sizes: Any) -> Any:
    """A model of random weights, spread so that greedy tokens vary."""
    torch.manual_seed(7)
    text = getattr(transformers, f"{prefix}TextConfig", None)
    config = (text or getattr(transformers, f"{prefix}Config"))(
        **{
            key: value
            for key, value in sizes.items()
            if value is not None or "token" in key
        }
    )
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in parameter_name:
                parameter.mul_(8)
            elif parameter_name.endswith("sinks"):
                parameter.normal_()
            elif parameter_name.endswith("A_log"):
                parameter.fill_(-4.0)  # states that remember
    return model


def reference(
    module: Any, prompt: Listing[int], num_tokens: int, *, eos: int | None = None
) -> list[int]:
    """What transformers' own `generate` emits, greedy, with the EOS if it ends it."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=eos,
        )
    emitted: list[int] = output[0, len(prompt) :].tolist()
    return emitted
