"""Models that give a vector for a text: the forward of many texts at once.

Device process. transformers' own headless class computes hidden states, `pooling` makes
one vector of them. Texts of about the same length share a forward, padded right under a
mask; a text is always computed whole, so nothing is cached and no page is needed.

Invariant: a row's vector depends on its own ids alone, up to rounding: equal to a
forward by itself within 1e-5 in float32. A row with NaN fails alone.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ipc.errors import error_for
from ipc.messages import Load
from neurond.device import pooling
from neurond.device.backend import Outcome, Resident, Row, Work
from neurond.device.pooling import Pooling
from neurond.device.verdict import nan_error
from neurond.device.weights import refuse

KIND = "embedding"
_MAX_PADDED_TOKENS = 4096
_LEAST_FILLED = 0.75
_SLACK_TOKENS = 8
_UNKNOWN_CONTEXT = 512


@dataclass(slots=True)
class EncoderBody:
    """A resident embedder. `pad_id` fills rows up: some count positions by it."""

    module: Any
    device: torch.device
    pooling: Pooling
    pad_id: int


def embedder_class(config: Any, folder: Path) -> Any | None:
    """The headless class of the folder's model, if vectors are what it is for.

    So it is when the folder says so (modules.json), or when its checkpoint was saved
    without a head.
    """
    import transformers
    from transformers.models.auto import modeling_auto as tables

    own = tables.MODEL_MAPPING_NAMES.get(config.model_type)
    names = (own,) if isinstance(own, str) else tuple(own or ())
    told = [name for name in config.architectures or [] if name in names]
    if not told and not (names and pooling.is_embedder(folder)):
        return None
    return getattr(transformers, told[0] if told else names[0])


def arguments(model_class: Any) -> dict[str, Any]:
    """What to build the class with: no layer that the vectors don't come from."""
    takes = inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}


def dtype_name(told: str, config: Any) -> str:
    """Small models whose config says nothing were saved, and are run, in float32."""
    silent = told in ("", "auto") and getattr(config, "dtype", None) is None
    return "float32" if silent else told


def resident(
    spec: Load, folder: Path, module: Any, device: torch.device, resident_bytes: int
) -> Resident:
    """Warmed up. Raises load_failed."""
    config = module.config
    body = EncoderBody(
        module, device, pooling.read(folder), getattr(config, "pad_token_id", None) or 0
    )
    size = _warm_up(body)
    vocab_size = int(module.get_input_embeddings().weight.shape[0])
    info = {
        "architecture": type(module).__name__,
        "dtype": str(module.dtype).removeprefix("torch."),
        "quant": "none",
        "num_parameters": module.num_parameters(),
        "vocab_size": vocab_size,
        "has_vision": False,
        "kind": KIND,
        "dimensions": size,
        "matryoshka": spec.options.get("matryoshka") is True,
    }
    return Resident(
        name=spec.model,
        context=_context(spec.context, folder, module),
        vocab_size=vocab_size,
        eos_ids=frozenset(),
        resident_bytes=resident_bytes,
        info=info,
        body=body,
    )


def forward(works: Listing[Work], *, alone: bool = False) -> list[Outcome]:
    """A vector per work, each of which is a whole prompt.

    `alone`: each by itself, so that its bits don't depend on its company either.
    """
    body: EncoderBody = works[0].sequence.model.body
    outcomes: list[Outcome] = [_not_text() for _ in works]
    rows = {i: work.sequence.ids for i, work in enumerate(works) if _is_whole(work)}
    lengths = {i: len(ids) for i, ids in rows.items()}
    for bucket in ([i] for i in rows) if alone else buckets(lengths):
        computed = vectors(body, [rows[index] for index in bucket])
        for index, outcome in zip(bucket, computed, strict=True):
            outcomes[index] = outcome
    return outcomes


def vectors(body: EncoderBody, rows: Listing[Listing[int]]) -> list[Outcome]:
    """One forward of the module: little-endian float32 per row."""
    longest = max(map(len, rows))
    padded = [[*ids, *[body.pad_id] * (longest - len(ids))] for ids in rows]
    mask = torch.tensor(
        [[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows],
        device=body.device,
    )
    hidden = body.module(
        input_ids=torch.tensor(padded, device=body.device), attention_mask=mask
    ).last_hidden_state
    pooled = body.pooling.apply(hidden, mask).cpu().numpy()
    return [
        Row(vector=row.astype("<f4").tobytes())
        if np.isfinite(row).all()
        else nan_error()
        for row in pooled
    ]


def buckets(lengths: dict[int, int]) -> Iterator[list[int]]:
    """Indices in groups of about the same length, the longest first.

    A row joins while it fills three quarters of the group's width and the group has
    room for it.
    """
    group: list[int] = []
    width = 0
    for index in sorted(lengths, key=lambda i: -lengths[i]):
        fits = width * (len(group) + 1) <= _MAX_PADDED_TOKENS
        if group and fits and lengths[index] >= width * _LEAST_FILLED - _SLACK_TOKENS:
            group.append(index)
            continue
        if group:
            yield group
        group, width = [index], lengths[index]
    if group:
        yield group


def _is_whole(work: Work) -> bool:
    return work.sequence.submit.embed and work.draws and not work.sequence.num_computed


def _not_text() -> Outcome:
    words = "the model gives vectors of whole texts and nothing else"
    return error_for("wrong_modality", words, param="model")


def _warm_up(body: EncoderBody) -> int:
    """First use of every kernel. Returns the number of dimensions."""
    with torch.inference_mode():
        outcome = vectors(body, [[0] * 8, [0] * 5])[0]
    if not isinstance(outcome, Row) or outcome.vector is None:
        raise refuse("the model computes NaN: its weights are damaged")
    return len(outcome.vector) // 4


def _context(asked: int, folder: Path, module: Any) -> int:
    """What is asked for within the model's positions, else what its makers serve."""
    positions = _num_positions(module)
    if asked:
        return min(asked, positions)
    path = folder / "sentence_bert_config.json"
    told = (
        json.loads(path.read_bytes()).get("max_seq_length") if path.exists() else None
    )
    return min(int(told), positions) if told else positions


def _num_positions(module: Any) -> int:
    """RoBERTa and its kin count positions from behind the padding id."""
    total = getattr(module.config, "max_position_embeddings", None) or _UNKNOWN_CONTEXT
    first = getattr(getattr(module, "embeddings", None), "padding_idx", None)
    return int(total) - (0 if first is None else int(first) + 1)
