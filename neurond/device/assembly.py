"""Modules of transformers' own classes, built from our tensors.

Device process. transformers builds on the meta device, then sets each parameter in
place; key conversions and tied weights are its own business. These are long calls into
foreign Python: the loader runs them in turns.

Invariant: a model is complete or refused. transformers would fill missing weights with
random numbers and a log line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neurond.device import encoder
from neurond.device.weights import Entry, refuse

_NAMED_KEYS = 5


@dataclass(frozen=True, slots=True)
class Kind:
    """What a folder's config.json says that it holds."""

    config: Any
    model_class: Any
    embeds: bool


def prepare() -> None:
    """What transformers makes once per process, at the first model: a table of names.

    It takes a tenth of a second, in one piece; better before streams run.
    """
    from transformers import conversion_mapping

    conversion_mapping.get_checkpoint_conversion_mapping("llama")


def read_config(folder: Path) -> Any:
    """Raises load_failed, or whatever transformers thinks of the file."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise refuse("the model folder has no config.json")
    config = AutoConfig.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    told = getattr(config, "quantization_config", None)
    if told:
        method = told.get("quant_method") if isinstance(told, dict) else None
        raise refuse(f"no kernel here computes {method or 'quantised'} checkpoints")
    return config


def kind_of(config: Any, folder: Path) -> Kind:
    """Imports the model's class: some tens of ms at the first of its family."""
    embedder = encoder.embedder_class(config, folder)
    model_class = embedder or _model_class(config)
    return Kind(config, model_class, embedder is not None)


def skeleton(kind: Kind) -> Any:
    """The module without weights, to see what it is made of."""
    with torch.device("meta"):
        return kind.model_class(kind.config, **encoder.arguments(kind.model_class))


def placeholder(entry: Entry, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Has the shape of a weight and one number's memory; it is replaced when packed."""
    return torch.zeros(1, dtype=dtype, device=device).expand(entry.shape)


def place(
    kind: Kind,
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Any, list[str]]:
    """The module, and keys of the checkpoint that it has no use for.

    Raises load_failed naming what is missing. `tensors` is empty afterwards.
    """
    sdpa = getattr(kind.model_class, "_supports_sdpa", False)
    where: dict[str, Any] = {}
    if device.type != "cpu":
        where["device_map"] = {"": device}
        _skip_allocator_warmup()
    module, info = kind.model_class.from_pretrained(
        None,
        config=kind.config,
        state_dict=tensors,
        dtype=dtype,
        attn_implementation="sdpa" if sdpa else "eager",
        output_loading_info=True,
        trust_remote_code=False,
        **where,
        **encoder.arguments(kind.model_class),
    )
    tensors.clear()
    _check_complete(info)
    return module.eval(), sorted(info["unexpected_keys"])


def takes(module: Any, argument: str) -> bool:
    """Whether its forward knows the argument."""
    import inspect

    return argument in inspect.signature(module.forward).parameters


def resident_bytes(module: Any) -> int:
    """Of every storage that is held: parameters, buffers, packed weights."""
    tensors = [*module.parameters(), *module.buffers()]
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors
    }
    packed: dict[int, Callable[[], int]] = {
        id(part): part.held_bytes
        for part in module.modules()
        if hasattr(part, "held_bytes")
    }
    return sum(storages.values()) + sum(held() for held in packed.values())


def _check_complete(info: Mapping[str, Any]) -> None:
    missing = sorted(info["missing_keys"])
    if not missing:
        return
    named = ", ".join(missing[:_NAMED_KEYS])
    more = f" and {len(missing) - _NAMED_KEYS} more" * (len(missing) > _NAMED_KEYS)
    raise refuse(
        f"the checkpoint lacks {named}{more}", fields={"missing_keys": missing[:64]}
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


def _skip_allocator_warmup() -> None:
    """transformers reserves the model's size once more, for tensors yet to be placed.

    Ours are on the device already, so that would be twice the memory.
    """
    from transformers import modeling_utils

    modeling_utils.caching_allocator_warmup = lambda *_args, **_kwargs: None
