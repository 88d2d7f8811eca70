"""How far a load is: weighted stages, one percentage that never goes back.

Supervisor; pure but for the fold of what was reported. Weights are the share of time
that a stage takes where it was measured; they needn't be exact for the percentage to be
honest about order, and the ETA comes from the clock.

    converting 0-60   reading the GGUF and writing the folder (only at the first load)
    weights    60-95  bytes of the safetensors files read
    warmup     95-100 the first forward
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WITH_CONVERSION = (("converting", 60.0), ("weights", 35.0), ("warmup", 5.0))
PLAIN = (("weights", 90.0), ("warmup", 10.0))
_LEAST_FOR_ETA = 5.0


@dataclass(frozen=True, slots=True)
class Position:
    """`eta_s` is None while too little is done to tell."""

    stage: str
    percent: float
    eta_s: float | None


class Progress:
    """One load from its begin; times are of any one clock."""

    def __init__(self, weights: Sequence[tuple[str, float]], started_s: float) -> None:
        self._weights = tuple(weights)
        self._started_s = started_s
        self._percent = 0.0
        self.stage = self._weights[0][0]

    def report(self, stage: str, done: int, total: int) -> None:
        """A stage that the plan doesn't know moves nothing but the name."""
        self.stage = stage
        self._percent = max(self._percent, self._reached(stage, done, total))

    def position(self, now_s: float) -> Position:
        percent = round(self._percent, 1)
        if percent < _LEAST_FOR_ETA:
            return Position(self.stage, percent, None)
        elapsed_s = now_s - self._started_s
        eta_s = elapsed_s * (100.0 - percent) / percent
        return Position(self.stage, percent, round(eta_s, 1))

    def _reached(self, stage: str, done: int, total: int) -> float:
        before = 0.0
        for name, weight in self._weights:
            if name == stage:
                share = min(max(done / total, 0.0), 1.0) if total > 0 else 1.0
                return before + weight * share
            before += weight
        return 0.0
