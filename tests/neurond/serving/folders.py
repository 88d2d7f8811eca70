"""Small tokenizers of the families that matter, built in memory or as folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

CORPUS = [
    "日本語の文字列 中文字符 한국어 emoji 😀😁😂 👩‍👩‍👧 hello world café naïve",
    "def main():\n    return 'ok'\n\t# Ω ≈ ∑ żółć",
] * 8
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = ["<|im_start|>", "<|im_end|>"]


def byte_level() -> Tokenizer:
    """GPT-2's family: merges run across the bytes of a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<｜think é｜>", special=False, normalized=False)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Llama 2's family: whole characters, and bytes for those it doesn't know."""
    known = sorted(set("▁abcdefghijklmnopqrstuvwxyz.,!?日本語"))
    texts = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], *known]
    vocab = {text: i for i, text in enumerate(texts)}
    tokenizer = Tokenizer(
        models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def write(folder: Path, tokenizer: Tokenizer, **config: Any) -> Path:
    """A model folder as far as serving reads one."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    known = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(known))
    (folder / "config.json").write_text('{"model_type": "fake"}')
    return folder
