"""A tiny random GGUF file with a byte-level tokenizer and a chat template."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants

from neurond.device.fakemodel import TEMPLATE, byte_characters
from neurond.device.fakescript import IM_END

_VOCAB_SIZE = 260
_HIDDEN = 64
_INNER = 128


def build(path: Path, kind: str = "Q4_1") -> Path:
    """Llama, two layers, linear layers in blocks of `kind`.

    Ids 0-255 are bytes, as in the fake model.
    """
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(_HIDDEN)
    writer.add_block_count(2)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_VOCAB_SIZE)
    _add_tokenizer(writer)
    _add_tensors(writer, GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: GGUFWriter) -> None:
    tokens = [*byte_characters(), "<|im_start|>", "<|im_end|>", "xy", "yz"]
    types = [TokenType.NORMAL] * 256 + [TokenType.CONTROL] * 2 + [TokenType.NORMAL] * 2
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["x y", "y z"])
    writer.add_eos_token_id(IM_END)
    writer.add_bos_token_id(IM_END - 1)
    writer.add_pad_token_id(IM_END)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _add_tensors(writer: GGUFWriter, linear: GGMLQuantizationType) -> None:
    source = np.random.default_rng(3)
    shapes = {"token_embd": (_VOCAB_SIZE, _HIDDEN), "output_norm": (_HIDDEN,)}
    for layer in ("blk.0.", "blk.1."):
        shapes[layer + "attn_norm"] = shapes[layer + "ffn_norm"] = (_HIDDEN,)
        shapes[layer + "attn_q"] = shapes[layer + "attn_output"] = (_HIDDEN, _HIDDEN)
        shapes[layer + "attn_k"] = shapes[layer + "attn_v"] = (_HIDDEN // 2, _HIDDEN)
        shapes[layer + "ffn_gate"] = shapes[layer + "ffn_up"] = (_INNER, _HIDDEN)
        shapes[layer + "ffn_down"] = (_HIDDEN, _INNER)
    for name, shape in shapes.items():
        weights = source.normal(0, 0.1, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
        else:
            embeds = name == "token_embd"
            kind = GGMLQuantizationType.Q8_0 if embeds else linear
            blocks = quants.quantize(weights, kind)
            writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)
