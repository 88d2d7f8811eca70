"""Keeps a GGUF's own 4-bit blocks beside the folder that it is converted to.

Conversion process. transformers has dequantised the file into a model; here the same
tensors are read once more as blocks, by the names that the gguf library gives to
transformers' layers, and written for the device (`blocks.safetensors`).

Invariant: a layer's blocks are kept only if they give bit for bit the weights that
transformers made of them, so no layout or order of rows is ever guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from neurond.converted import BLOCKS_FILE, KERNEL_TYPES, Marker
from neurond.device import blocks
from neurond.device.blocks import Blocks
from neurond.device.linear import LinearPlan
from neurond.device.packing import Site, sites
from neurond.device.quant import Quant
from neurond.quant import Form

_NOT_LINEAR = ("token_embd.weight", "output.weight")
_ALL = Quant(Form("", "blocks", "none"), LinearPlan("blocks"), None)


def survey(reader: Any, source: Path) -> Marker:
    """What the file holds, from its list of tensors; blocks are yet to be kept."""
    types: Counter[str] = Counter()
    for tensor in reader.tensors:
        if len(tensor.shape) > 1 and tensor.name not in _NOT_LINEAR:
            # experts are stacked in one tensor, which no layer of ours computes from
            stacked = "[experts]" * (len(tensor.shape) > 2 and _is_blocks(tensor))
            types[tensor.tensor_type.name + stacked] += 1
    dense_bytes = 2 * sum(int(tensor.n_elements) for tensor in reader.tensors)
    return Marker(source.stat().st_size, dense_bytes, dict(types), has_blocks=True)


def keep(reader: Any, model: Any, folder: Path) -> bool:
    """Write the blocks of all linear layers; False where one of them has none."""
    from safetensors.torch import save_file

    kept: dict[str, torch.Tensor] = {}
    for site, found in _matched(reader, model):
        if found is None:
            return False
        kept.update(blocks.to_stored(site.name, found))
    if kept:
        save_file(kept, folder / BLOCKS_FILE)
    return bool(kept)


def _matched(reader: Any, model: Any) -> Iterator[tuple[Site, Blocks | None]]:
    names = _name_map(reader)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = model.config.get_text_config()
    told = (config.num_attention_heads, getattr(config, "num_key_value_heads", None))
    heads = [number for number in dict.fromkeys(told) if number]
    for site in sites(model, _ALL):
        name = names.get_name(site.name)
        tensor = tensors.get(f"{name}.weight")
        yield site, None if tensor is None else _match(site, tensor, heads)


def _match(site: Site, tensor: Any, heads: list[int]) -> Blocks | None:
    kind = tensor.tensor_type.name
    if kind not in KERNEL_TYPES:
        return None
    weight = site.layer.weight.detach()
    raw = torch.from_numpy(tensor.data.copy()).view(weight.shape[0], -1)
    as_filed = blocks.read(raw, kind)
    for found in _orders(as_filed, heads):
        if torch.equal(found.dense(weight.dtype), weight):
            return found if blocks.is_exact(found) else None
    return None


def _orders(as_filed: Blocks, heads: list[int]) -> Iterator[Blocks]:
    yield as_filed
    for number in heads:
        if as_filed.shape[0] % (2 * number) == 0:
            yield blocks.unpermute(as_filed, number)


def _name_map(reader: Any) -> Any:
    import gguf

    told = str(reader.fields["general.architecture"].contents())
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == told)
    count = int(reader.fields[f"{told}.block_count"].contents())
    return gguf.get_tensor_name_map(arch, count)


def _is_blocks(tensor: Any) -> bool:
    return tensor.tensor_type.name not in ("F32", "F16", "BF16", "F64")
