"""Builds the folder of a fake model: a byte-level tokenizer, a template, a config.

Used by the supervisor (source "fake") and by tests; needs neither torch nor
transformers. Ids 0-255 are the bytes, 256 <|im_start|>, 257 <|im_end|> (EOS), so any
UTF-8 text is one token per byte and characters really do split (S07).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from neurond.device.fakescript import IM_END, IM_START

CONTEXT = 8192
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(folder: Path, *, context: int = CONTEXT) -> Path:
    """Write the folder unless it is there. Returns it."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": _tokenizer_config(context),
        "generation_config.json": {"eos_token_id": [IM_END]},
        "config.json": {"model_type": "fake", "max_position_embeddings": context},
    }
    for name, content in files.items():  # config.json last: it marks a whole folder
        _write(folder / name, content)
    return folder


def _write(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(content, ensure_ascii=False, indent=1))
    partial.replace(path)


def _tokenizer() -> dict[str, Any]:
    alphabet = byte_characters()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _special(IM_START, "<|im_start|>"),
            _special(IM_END, "<|im_end|>"),
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "trim_offsets": False},
        "post_processor": None,
        "decoder": {**byte_level, "trim_offsets": False},
        "model": {
            "type": "BPE",
            "vocab": {character: byte for byte, character in enumerate(alphabet)},
            "merges": [],
        },
    }


def _tokenizer_config(context: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": TEMPLATE,
        "eos_token": "<|im_end|>",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }


def _special(token: int, text: str) -> dict[str, Any]:
    return {
        "id": token,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte, which tokenizers' ByteLevel expects."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
