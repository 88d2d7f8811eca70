"""From a model folder to a model on the device.

Device process. transformers builds the model from our tensors: on the meta device, then
each parameter set in place, key conversions and tied weights included. What a folder
says is believed only where it can't run code: no remote code, no pickles, no class that
is not in transformers' own tables, nothing fetched.

Invariant: a model is complete or refused. transformers would fill missing weights with
random numbers and a log line.
"""

from __future__ import annotations

import inspect
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ipc.messages import Load, LoadProgress
from neurond.device import encoder
from neurond.device.backend import LoadSteps, Resident
from neurond.device.weights import Reader, find_entries, refuse

_UNKNOWN_CONTEXT = 4096
_NAMED_KEYS = 5
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


@dataclass(slots=True)
class Body:
    """A resident model's modules. `last_only`: it computes one row of logits."""

    module: Any
    device: torch.device
    last_only: bool


def load(spec: Load, device: torch.device) -> LoadSteps:
    """Yields between slices; returns the resident model. Raises load_failed."""
    folder = Path(spec.folder)
    config = _read_config(folder)
    embedder = encoder.embedder_class(config, folder)
    model_class = embedder or _model_class(config)
    if spec.quant not in ("", "none"):
        raise refuse(f"quantisation {spec.quant!r} is not supported")
    told = encoder.dtype_name(spec.dtype, config) if embedder else spec.dtype
    dtype = _dtype(told, config)
    entries = find_entries(folder)
    total = sum(entry.size_bytes for entry in entries)
    yield LoadProgress(spec.model, "weights", 0, total)
    reader = Reader(device)
    for done in reader.read(entries, dtype):
        yield LoadProgress(spec.model, "weights", done, total)
    yield LoadProgress(spec.model, "weights", total, total)
    module = _assemble(model_class, config, reader.tensors, dtype, device)
    yield LoadProgress(spec.model, "warmup", 0, 1)
    if embedder:
        size_bytes = _resident_bytes(module)
        return encoder.resident(spec, folder, module, device, size_bytes)
    body = Body(module, device, _takes(module, "logits_to_keep"))
    _warm_up(body)
    yield LoadProgress(spec.model, "warmup", 1, 1)
    return _resident(spec, folder, body)


def quiet_transformers() -> None:
    """Its warnings and bars are for a person at a terminal; ours is the journal."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise refuse("the model folder has no config.json")
    return AutoConfig.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )


def _model_class(config: Any) -> Any:
    """The class the checkpoint was saved with, if it is one that writes text.

    The auto class for text would do for most, but cuts the tower off a vision model and
    leaves its head at random.
    """
    import transformers
    from transformers.models.auto import modeling_auto as tables

    known = {
        *_names(tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        *_names(tables.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
    }
    told = [name for name in config.architectures or [] if name in known]
    if not told:
        raise refuse(f"{config.model_type!r} is no architecture that writes text")
    return getattr(transformers, told[0])


def _names(table: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for names in table.values():
        found.update((names,) if isinstance(names, str) else names)
    return found


def _dtype(told: str, config: Any) -> torch.dtype:
    if told not in ("", "auto"):
        if told not in DTYPES:
            raise refuse(f"dtype {told!r} is not one of {', '.join(DTYPES)}")
        return DTYPES[told]
    text = config.get_text_config()
    own = getattr(config, "dtype", None) or getattr(text, "dtype", None)
    if isinstance(own, str):
        own = DTYPES.get(own)
    return next((dtype for dtype in DTYPES.values() if dtype == own), torch.bfloat16)


def _assemble(
    model_class: Any,
    config: Any,
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    sdpa = getattr(model_class, "_supports_sdpa", False)
    where: dict[str, Any] = {}
    if device.type != "cpu":
        where["device_map"] = {"": device}
        _skip_allocator_warmup()
    module, info = model_class.from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        dtype=dtype,
        attn_implementation="sdpa" if sdpa else "eager",
        output_loading_info=True,
        trust_remote_code=False,
        **where,
        **encoder.arguments(model_class),
    )
    tensors.clear()
    if missing := sorted(info["missing_keys"]):
        named = ", ".join(missing[:_NAMED_KEYS])
        more = f" and {len(missing) - _NAMED_KEYS} more" * (len(missing) > _NAMED_KEYS)
        raise refuse(
            f"the checkpoint lacks {named}{more}", fields={"missing_keys": missing[:64]}
        )
    return module.eval()


def _skip_allocator_warmup() -> None:
    """transformers reserves the model's size once more, for tensors yet to be placed.

    Ours are on the device already, so that would be twice the memory.
    """
    from transformers import modeling_utils

    modeling_utils.caching_allocator_warmup = lambda *_args, **_kwargs: None


def _takes(module: Any, argument: str) -> bool:
    return argument in inspect.signature(module.forward).parameters


def _warm_up(body: Body) -> None:
    """First use of every kernel, before the model counts as loaded."""
    with torch.inference_mode():
        ids = torch.zeros((1, 8), dtype=torch.long, device=body.device)
        logits = body.module(input_ids=ids, use_cache=False).logits
        best = logits[0, -1].max().item()
    if not torch.isfinite(torch.tensor(best)):
        raise refuse("the model computes NaN: its weights are damaged")


def _resident(spec: Load, folder: Path, body: Body) -> Resident:
    module = body.module
    config = module.config
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or _UNKNOWN_CONTEXT
    vocab_size = int(module.get_input_embeddings().weight.shape[0])
    info = {
        "architecture": type(module).__name__,
        "dtype": str(module.dtype).removeprefix("torch."),
        "quant": "none",
        "num_parameters": module.num_parameters(),
        "vocab_size": vocab_size,
        "has_vision": hasattr(config, "vision_config"),
    }
    return Resident(
        name=spec.model,
        context=min(spec.context, longest) if spec.context else longest,
        vocab_size=vocab_size,
        eos_ids=_eos_ids(folder, text),
        resident_bytes=_resident_bytes(module),
        info=info,
        body=body,
    )


def _eos_ids(folder: Path, text_config: Any) -> frozenset[int]:
    told: Any = None
    path = folder / "generation_config.json"
    if os.path.exists(path):
        told = json.loads(path.read_bytes()).get("eos_token_id")
    if told is None:
        told = getattr(text_config, "eos_token_id", None)
    ids = told if isinstance(told, list) else [told]
    return frozenset(int(token) for token in ids if token is not None and token >= 0)


def _resident_bytes(module: Any) -> int:
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(storages.values())
