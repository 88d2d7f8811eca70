"""A checkpoint of any size with random weights, from a configuration alone.

The shapes are those of the class's skeleton on the meta device. The numbers are one
block of noise again and again: what they are makes no difference to how long they take.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import torch

_BLOCK = 16 << 20
_SPREAD = 0.02
_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def write(folder: Path, config: Any, dtype: torch.dtype) -> int:
    """config.json and model.safetensors. Returns the weights' bytes."""
    from transformers import AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(skeleton).__name__]
    config.dtype = str(dtype).removeprefix("torch.")
    config.save_pretrained(folder)
    shapes = {name: tuple(p.shape) for name, p in skeleton.named_parameters()}
    return _write(folder / "model.safetensors", shapes, dtype)


def _write(path: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> int:
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        told = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
        header[name] = told
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = _noise(min(_BLOCK, end), dtype)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for at in range(0, end, len(noise)):
            file.write(noise[: end - at])
    return end


def _noise(size_bytes: int, dtype: torch.dtype) -> memoryview:
    made = torch.Generator().manual_seed(1)
    numbers = torch.randn(size_bytes // dtype.itemsize, generator=made) * _SPREAD
    return memoryview(numbers.to(dtype).view(torch.uint8).numpy())
