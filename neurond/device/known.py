"""What a load has found out about a model, so that the next life needn't ask again.

Device process, torch-free. A first load tries everything out: pages against caches of
the model's own, sizes of tiles, bits in every company, speed. A device that died loads
the same files on the same hardware by the same code; the stamp says so. Then these
answers hold, and the golden one, which is always asked for, must come out as before.

Invariant: nothing is known of a model whose stamp is another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class Known:
    """`is_paged`: it serves over the pool; `prefill_tokens_s` 0.0 = not measured;
    `tiles` and `cost` are those of invariant numerics, empty = not proven; `packed`
    names the file of packed weights whose checksums were right, empty = none."""

    stamp: str = ""
    is_paged: bool = False
    prefill_tokens_s: float = 0.0
    tiles: list[int] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    packed: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, told: Mapping[str, Any], stamp: str) -> Known:
        """From `told` of an earlier load, if that was of the same."""
        names = {field.name for field in fields(cls)}
        if told.get("stamp") != stamp or not told.keys() <= names:
            return cls(stamp)
        return cls(**told)

    def told(self) -> dict[str, Any]:
        return asdict(self)
