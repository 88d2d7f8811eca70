"""From the hidden states of a text to its one vector, as the model folder says.

Device process. A sentence-transformers folder lists what follows the transformer in
modules.json; a pooling and a normalisation can be done here, anything else (a dense
layer) would change the vectors and is refused.

    modules.json   [{type: …Transformer}, {type: …Pooling, path: "1_Pooling"},
                    {type: …Normalize}]

Invariant: padding never counts: each row sees its own mask alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neurond.device.weights import refuse

_PREFIX = "pooling_mode_"
_FLAGS = {
    "mean_tokens": "mean",
    "cls_token": "cls",
    "max_tokens": "max",
    "lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class Pooling:
    """`mode`: mean, cls, max or lasttoken. `normalise`: to a length of one."""

    mode: str = "mean"
    normalise: bool = True

    def apply(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """hidden [R, L, D], mask [R, L] of 0 and 1, padded right → float32 [R, D]."""
        pooled = _MODES[self.mode](hidden.float(), mask)
        if self.normalise:
            return torch.nn.functional.normalize(pooled, dim=-1)
        return pooled


def is_embedder(folder: Path) -> bool:
    """Whether the folder was made to give vectors, whatever its architecture."""
    return (folder / "modules.json").is_file()


def read(folder: Path) -> Pooling:
    """What follows the transformer; without modules.json a normalised mean.

    Raises load_failed.
    """
    if not is_embedder(folder):
        return Pooling()
    modules = json.loads((folder / "modules.json").read_bytes())
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    known = {"Transformer", "Pooling", "Normalize"}
    if strange := sorted(set(kinds) - known):
        raise refuse(f"modules.json asks for {strange[0]}, which is not supported")
    paths = [
        m["path"] for m, kind in zip(modules, kinds, strict=True) if kind == "Pooling"
    ]
    mode = _mode(folder, paths[0]) if paths else "mean"
    return Pooling(mode, "Normalize" in kinds)


def _mode(folder: Path, name: str) -> str:
    if Path(name).name != name:
        raise refuse("modules.json points outside its folder")
    config: dict[str, Any] = json.loads((folder / name / "config.json").read_bytes())
    told = config.get("pooling_mode")
    flags = [
        key for key, on in config.items() if key.startswith(_PREFIX) and on is True
    ]
    modes = [told] if told else [_FLAGS.get(f.removeprefix(_PREFIX), f) for f in flags]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise refuse(f"pooling {', '.join(map(str, modes))} is not supported")
    return str(modes[0])


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def _first(hidden: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
    return hidden[:, 0]


def _greatest(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden.masked_fill(mask[:, :, None] == 0, -torch.inf).amax(1)


def _last(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, mask.sum(1) - 1]


_MODES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean": _mean,
    "cls": _first,
    "max": _greatest,
    "lasttoken": _last,
}
