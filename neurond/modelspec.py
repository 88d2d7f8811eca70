"""What is to be loaded and how: the order that a load, a restore and a reload share.

Supervisor. Frozen and plain, so that it can be stored and compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

EMBEDDED_ID = "smollm2-135m-instruct"
EMBEDDED_SOURCE = "embedded:smollm2"

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+/-]{0,199}")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """`devices` empty = one device, chosen by us; else a replica on each of these."""

    id: str
    source: str
    dtype: str = "auto"
    quant: str = "none"
    context: int = 0
    pinned: bool = False
    priority: int = 100
    options: dict[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "devices": list(self.devices)}

    def with_changes(self, changes: Mapping[str, Any]) -> ModelSpec:
        return replace(self, **changes) if changes else self


def spec_of(stored: Mapping[str, Any]) -> ModelSpec:
    """Inverse of `to_dict`; unknown keys are dropped. Raises TypeError, KeyError."""
    known = {f.name: stored[f.name] for f in fields(ModelSpec) if f.name in stored}
    devices = tuple(known.pop("devices", ()))
    return ModelSpec(**known, devices=devices)


def is_model_id(text: str) -> bool:
    """Letters, digits and a few signs; never a path that climbs (T16)."""
    parts = text.split("/")
    return bool(_ID.fullmatch(text)) and not any(p in ("", ".", "..") for p in parts)
