"""How many prompt tokens the next step takes, by what steps have cost so far.

Device process, torch-free, pure. With nobody decoding a step takes a whole chunk;
otherwise as much as the streams of the model, or those of another model that wait for
this step, can bear.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Listing

from neurond.device.backend import Resident, Work
from neurond.device.rates import RateModel, Rates
from neurond.device.sequence import Sequence


class Pace:
    """Owns the rate model of every resident model."""

    def __init__(self, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens
        self._models: dict[str, RateModel] = {}

    def chunk(self, model: Resident, running: Iterable[Sequence]) -> int:
        """Prompt tokens for a step of `model` beside those who run."""
        rows = _streams(running)
        if not rows:
            return self._chunk_tokens
        base_s, mixed = self._base_s(model, rows), model.name in rows
        return self._of(model.name).chunk(self._chunk_tokens, base_s, mixed=mixed)

    def pause_s(self, model: Resident, running: Iterable[Sequence]) -> float:
        """How long a step with a chunk in stints may take; 0.0: in one piece."""
        rows = _streams(running)
        if not (model.pauses and rows):
            return 0.0
        return self._of(model.name).pause_s(self._base_s(model, rows))

    def observe(self, works: Listing[Work], seconds: float) -> None:
        """A step took so long; call it before its rows are booked. 0.0: don't know."""
        if seconds <= 0 or any(work.pause_s for work in works):
            return
        model = works[0].sequence.model
        rows = sum(work.sequence.decodes for work in works)
        tokens = sum(work.num_ids for work in works) - rows
        self._of(model.name).observe(rows, tokens, seconds)

    def rates(self, model: Resident) -> Rates:
        return self._of(model.name).rates

    def forget(self, model: Resident) -> None:
        self._models.pop(model.name, None)

    def _base_s(self, model: Resident, rows: Mapping[str, int]) -> float:
        """A step of the streams that the chunk keeps waiting; 0.0: not known."""
        own = model.name in rows
        streams = {model.name: rows[model.name]} if own else rows
        steps_s = [self._of(name).decode_s(count) for name, count in streams.items()]
        return max(steps_s) if all(steps_s) else 0.0

    def _of(self, name: str) -> RateModel:
        return self._models.setdefault(name, RateModel())


def _streams(running: Iterable[Sequence]) -> Counter[str]:
    """How many decode, by model."""
    return Counter(s.model.name for s in running if s.decodes)
