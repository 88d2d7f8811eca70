"""How long a sequence of a model may be here, and what sets that bound (S26).

Device process, torch-free, pure. Decided once, when the model has been loaded, and
fixed for the life of that load: what is advertised is what is enforced.
"""

from __future__ import annotations

from dataclasses import dataclass

from neurond.device.backend import Resident

LEAST_BY_RATE = 512
"""Tokens. A limit by speed is never below: a measurement may have met a busy host."""


@dataclass(frozen=True, slots=True)
class Window:
    """`tokens` of prompt and answer together; `limited_by` is model, setting (the
    context that was asked for), memory or prefill_rate."""

    tokens: int
    limited_by: str


def window(
    asked: Window, *, memory_tokens: int, prefill_tokens_s: float, target_s: float
) -> Window:
    """The least of `asked` (the model's own or the setting's), of what the KV budget
    holds and of what is prefilled in `target_s`. An unmeasured rate (0.0) or no target
    (0.0) is no bound; of two equal bounds the one named first counts."""
    found = asked
    if memory_tokens < found.tokens:
        found = Window(memory_tokens, "memory")
    if prefill_tokens_s and target_s:
        soon = max(LEAST_BY_RATE, int(prefill_tokens_s * target_s))
        if soon < found.tokens:
            found = Window(soon, "prefill_rate")
    return found


def settle(model: Resident, *, memory_tokens: int, target_s: float) -> None:
    """Set the model's context to its window, and what of the KV budget that promises.

    So a model that is loaded later can't take back what was advertised.
    """
    found = window(
        Window(model.context, model.limited_by),
        memory_tokens=memory_tokens,
        prefill_tokens_s=model.prefill_tokens_s,
        target_s=target_s,
    )
    model.context, model.limited_by = found.tokens, found.limited_by
    spec = model.cache
    num_pages = -(-found.tokens // spec.page_tokens)
    model.promised_bytes = num_pages * spec.page_bytes + spec.state_bytes
