"""From a model folder to a model on the device.

Device process. What a folder says is believed only where it can't run code: no remote
code, no pickles, no class that is not in transformers' own tables, nothing fetched.

    config, class ─▶ skeleton on meta ─▶ which layers are packed, and from what
      ─▶ the other tensors read ─▶ assembled ─▶ layers packed one by one

Invariants: no slice holds the loop longer than about 50 ms; a load that is given up in
the middle leaves no thread and no memory.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
import transformers

from ipc.messages import Load, LoadProgress
from neurond import converted
from neurond.device import assembly, encoder, linear, packed
from neurond.device.assembly import Kind
from neurond.device.backend import LoadSteps, Resident
from neurond.device.build import Build, Meter
from neurond.device.known import Known
from neurond.device.numerics import is_invariant
from neurond.device.packed import Shelf
from neurond.device.quant import PLAIN, Quant, plans
from neurond.device.settings import DeviceSettings
from neurond.device.weights import refuse
from neurond.quant import Place, choose

_UNKNOWN_CONTEXT = 4096
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


def known_of(spec: Load, device: torch.device, settings: DeviceSettings) -> Known:
    """What the order says is known already, if that is of these files and this code."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    order = replace(spec, known={}, alone=False)
    versions = (transformers.__version__, linear.layout())
    made_by = (kind, torch.get_num_threads(), *versions)
    folder = Path(spec.folder)
    return Known.of(
        spec.known, packed.stamp(folder, repr(made_by), repr(order), repr(settings))
    )


def load(
    spec: Load,
    device: torch.device,
    settings: DeviceSettings | None = None,
    known: Known | None = None,
) -> LoadSteps:
    """Yields between slices; returns the resident model, not warmed up.

    Raises load_failed.
    """
    settings = settings or DeviceSettings()
    folder = Path(spec.folder)
    meter = Meter(spec.model)
    config = assembly.read_config(folder)
    yield meter.now()
    kind = assembly.kind_of(config, folder)
    yield meter.now()
    told = encoder.dtype_name(spec.dtype, config) if kind.embeds else spec.dtype
    dtype = _dtype(told, config)
    if kind.embeds:
        return (yield from _embedder(spec, kind, dtype, device))
    plan = _plan(spec, dtype, device, settings)
    work = Build(folder, kind, plan, dtype, device, meter)
    shelf = _shelf(spec, plan, settings, known or Known())
    module = yield from work.run(shelf)
    if known is not None:
        known.packed = shelf.identity
    body = Body(module, device, assembly.takes(module, "logits_to_keep"))
    return _resident(spec, folder, body, work)


def quiet_transformers() -> None:
    """Its warnings and bars are for a person at a terminal; ours is the journal."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    assembly.prepare()


def _embedder(
    spec: Load, kind: Kind, dtype: torch.dtype, device: torch.device
) -> LoadSteps:
    converted.check_quant(spec.quant)
    if spec.quant in ("int8", "int4"):
        raise refuse(f"quant {spec.quant!r} is not supported for embedding models")
    folder = Path(spec.folder)
    work = Build(folder, kind, PLAIN, dtype, device, Meter(spec.model))
    module = yield from work.run(Shelf(None, ""))
    yield LoadProgress(spec.model, "warmup", 0, 1)
    size_bytes = assembly.resident_bytes(module)
    return encoder.resident(spec, folder, module, device, size_bytes)


def _plan(
    spec: Load, dtype: torch.dtype, device: torch.device, settings: DeviceSettings
) -> Quant:
    fast = not is_invariant(spec.options, settings)
    name = str(dtype).removeprefix("torch.")
    place = Place(device.type == "cpu", name, is_fast=fast)
    marker = converted.read(Path(spec.folder))
    form = choose(spec.quant, spec.options, marker, place)
    return plans(form, dtype, device, fast=fast)


def _shelf(spec: Load, plan: Quant, settings: DeviceSettings, known: Known) -> Shelf:
    """Only what takes longer to make than to read is kept."""
    label, is_blocks = plan.form.label, plan.form.kind == "blocks"
    is_kept = is_blocks or label in ("int8", "int4")
    if not is_kept or not settings.packed_folder:
        return Shelf(None, "")
    stamp = packed.stamp(
        Path(spec.folder), linear.layout(), repr(plan.linear), repr(plan.head)
    )
    keeps_dense = plan.linear is not None and plan.linear.keep_dense
    sole = ".sole" * (is_blocks and not keeps_dense)  # serves other numerics
    name = f"{quote(spec.model, safe='')}.{label}{sole}.safetensors"
    path = Path(settings.packed_folder) / name
    return Shelf(path, stamp, is_whole=not is_blocks, trusted=known.packed)


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


def _resident(spec: Load, folder: Path, body: Body, build: Build) -> Resident:
    module = body.module
    config = module.config
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or _UNKNOWN_CONTEXT
    vocab_size = int(module.get_input_embeddings().weight.shape[0])
    info = {
        "architecture": type(module).__name__,
        "dtype": str(module.dtype).removeprefix("torch."),
        "quant": build.quant.form.label,
        "num_parameters": build.num_parameters,
        "vocab_size": vocab_size,
        "has_vision": hasattr(config, "vision_config"),
    }
    if size := build.quant.form.group_size:
        info["group_size"] = size
    if build.notes:
        info["notes"] = list(build.notes)
    return Resident(
        name=spec.model,
        context=min(spec.context, longest) if spec.context else longest,
        vocab_size=vocab_size,
        eos_ids=_eos_ids(folder, text),
        resident_bytes=assembly.resident_bytes(module),
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
