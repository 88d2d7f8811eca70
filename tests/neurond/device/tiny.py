"""Folders of tiny random checkpoints, made on the spot: noise as text, exact as
numbers. Their models are `families`', with an id that ends a text."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.neurond.device import families

VOCAB_SIZE = families.VOCAB_SIZE
EOS = VOCAB_SIZE - 1
FAMILIES = ("llama", "qwen3", "qwen3_5")


def build(family: str, folder: Path) -> Path:
    """A checkpoint of the family in float32; qwen3's head has weights of its own."""
    families.build(
        family,
        intermediate_size=128,
        eos_token_id=EOS,
        tie_word_embeddings=family != "qwen3",
    ).save_pretrained(folder)
    return folder


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
    emitted = families.reference(model, ids, num_tokens, eos=eos)
    return emitted[:-1] if emitted[-1] == eos else emitted
