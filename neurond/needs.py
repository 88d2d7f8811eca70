"""What a model will hold on a device, from its config.json and its files' headers.

Supervisor, before anything is touched; reads kilobytes, imports no torch.

    weights   per tensor: its numbers at the dtype served, or for a linear layer what
              its packed form takes (`neurond.quant`, `neurond.device.linear`)
    KV        one sequence of min(context, 4096) tokens: with less there is no serving

Invariant: it is never less than what the device will then count, but for activations.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurond import converted
from neurond.config import Model
from neurond.converted import BLOCKS_FILE
from neurond.quant import Form, Place, choose

FLOOR_TOKENS = 4096
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_ROUTERS = ("gate", "router", "shared_expert_gate")
_MAX_HEADER_BYTES = 100 << 20
_GROUP_BYTES = 4
_ROW_BYTES = 12  # a scale; some kernels hold sums of their rows too


@dataclass(frozen=True, slots=True)
class Needs:
    weights_bytes: int
    kv_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes


def of(model: Model, folder: Path, *, on_cpu: bool) -> Needs:
    """Blocking, milliseconds. Raises load_failed: quant or blocks that can't be."""
    config = _read_config(folder)
    dtype = _dtype(model.dtype, config)
    place = Place(on_cpu, dtype)
    form = choose(model.quant, model.options, converted.read(folder), place)
    try:
        shapes = dict(_shapes(folder))
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return Needs(_file_bytes(folder), 0)  # the device will say what is wrong
    if not _writes_text(config):
        number = sum(math.prod(shape) for shape in shapes.values())
        return Needs(number * _DTYPE_BYTES[dtype], 0)
    return Needs(
        weights_bytes(shapes, form, place, tied=_is_tied(config, shapes)),
        kv_bytes(config, model.context, _DTYPE_BYTES[dtype]),
    )


def weights_bytes(
    shapes: Mapping[str, tuple[int, ...]], form: Form, place: Place, *, tied: bool
) -> int:
    """`shapes` by the names of the checkpoint."""
    size = _DTYPE_BYTES[place.dtype]
    total = 0
    for name, shape in shapes.items():
        plain_bytes = math.prod(shape) * size
        if _is_head(name):
            total += _packed(shape, form.head, form, size)
        elif _is_linear(name, shape):
            total += _packed(shape, form.kind, form, size)
        else:
            total += plain_bytes
            if tied and name.endswith("embed_tokens.weight"):
                total += _tied_head(shape, form, place)
    return total


def kv_bytes(config: Mapping[str, Any], context: int, dtype_bytes: int) -> int:
    """Of one sequence of min(context, 4096) tokens; 0 where the config tells nothing.

    A sliding layer keeps its window, a recurrent one no tokens.
    """
    text = config.get("text_config") or config
    heads = text.get("num_key_value_heads") or text.get("num_attention_heads") or 0
    width = text.get("head_dim") or (
        (text.get("hidden_size") or 0) // (text.get("num_attention_heads") or 1)
    )
    most = text.get("max_position_embeddings") or FLOOR_TOKENS
    tokens = min(context or most, most, FLOOR_TOKENS)
    window = min(text.get("sliding_window") or tokens, tokens)
    layers = text.get("layer_types") or ["full_attention"] * (
        text.get("num_hidden_layers") or 0
    )
    kept = {"linear_attention": 0, "sliding_attention": window}
    held = sum(kept.get(layer, tokens) for layer in layers)
    return int(2 * heads * width * dtype_bytes * held)


def _packed(shape: tuple[int, ...], kind: str, form: Form, dtype_bytes: int) -> int:
    """One matrix in one form; a shape that a kernel can't take stays dense."""
    rows, columns = shape
    dense = rows * columns * dtype_bytes
    if kind == "int8" and columns % 16 == 0:
        few = rows * columns + rows * _ROW_BYTES
    elif kind in ("int4", "blocks") and _fits_int4(shape, form.group_size):
        groups = rows * columns // form.group_size
        few = rows * columns // 2 + groups * _GROUP_BYTES
    else:
        return dense
    return few + dense * form.keep_dense


def _tied_head(shape: tuple[int, ...], form: Form, place: Place) -> int:
    """What the head holds beside the embedding."""
    if form.head != "none":
        return _packed(shape, form.head, form, _DTYPE_BYTES[place.dtype])
    reordered = place.on_cpu and place.dtype == "bfloat16" and place.is_fast
    return math.prod(shape) * 2 * reordered


def _fits_int4(shape: tuple[int, ...], group_size: int) -> bool:
    return shape[0] % 16 == 0 and shape[1] % group_size == 0


def _is_head(name: str) -> bool:
    return name.endswith("lm_head.weight")


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    path = name.split(".")
    text = len(shape) == 2 and path[-1] == "weight" and "layers" in path
    strange = any("vis" in part or "norm" in part or "embed" in part for part in path)
    return text and not strange and path[-2] not in _ROUTERS


def _is_tied(config: Mapping[str, Any], shapes: Mapping[str, Any]) -> bool:
    text = config.get("text_config") or config
    told = text.get("tie_word_embeddings", config.get("tie_word_embeddings", True))
    return bool(told) or not any(_is_head(name) for name in shapes)


def _writes_text(config: Mapping[str, Any]) -> bool:
    ends = ("ForCausalLM", "ForConditionalGeneration")
    return any(str(n).endswith(ends) for n in config.get("architectures") or ())


def _dtype(told: str, config: Mapping[str, Any]) -> str:
    if told in _DTYPE_BYTES:
        return told
    text = config.get("text_config") or {}
    keys = ("dtype", "torch_dtype")
    own = [part.get(key) for part in (config, text) for key in keys]
    return next((str(name) for name in own if name in _DTYPE_BYTES), _unsaid(config))


def _unsaid(config: Mapping[str, Any]) -> str:
    """Small embedders whose config says nothing are run in float32."""
    return "bfloat16" if _writes_text(config) else "float32"


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        told = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    for path in _files(folder):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError("no safetensors header")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                yield name, tuple(int(size) for size in entry["shape"])


def _file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder))


def _files(folder: Path) -> list[Path]:
    found = folder.glob("*.safetensors")
    return [path for path in found if path.name != BLOCKS_FILE]
