"""Rotary frequencies that don't depend on who is in the batch.

Device process. Two kinds of scaling (longrope of the Phi family, dynamic NTK) choose
their frequencies in every forward by the longest position in it, for all rows: a long
neighbour would change a short row's tokens, and keys computed before the switch would
not fit those behind it. So they are chosen once, by the context that the model is
served with; a served context within the original one keeps the original frequencies.

Invariant: afterwards no forward changes a frequency.
Sources: LongRoPE, Ding et al. 2024; YaRN (on dynamic scaling), Peng et al. 2023.
"""

from __future__ import annotations

from typing import Any

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_MOVING = frozenset(("dynamic", "longrope"))


def settle(module: Any, context: int) -> int:
    """Fix the frequencies of every rotary embedding. Returns how many moved."""
    parts = [part for part in module.modules() if hasattr(part, "rope_type")]
    return sum(_settle(part, context) for part in parts)


def _settle(part: Any, context: int) -> int:
    kinds = part.rope_type
    if isinstance(kinds, str):
        moving = kinds in _MOVING
        if moving:
            _fix(part, kinds, context, "", {})
            part.rope_type = "default"
        return moving
    names = [name for name, kind in kinds.items() if kind in _MOVING]
    for name in names:
        _fix(part, kinds[name], context, f"{name}_", {"layer_type": name})
    part.rope_type = {**kinds, **dict.fromkeys(names, "default")}
    return len(names)


def _fix(part: Any, kind: str, context: int, prefix: str, more: dict[str, Any]) -> None:
    old = getattr(part, f"{prefix}inv_freq")
    make = ROPE_INIT_FUNCTIONS[kind]
    frequencies, _ = make(part.config, old.device, seq_len=context, **more)
    old.copy_(frequencies)
