"""One sequence on the device: its ids, how many of them are computed, when it ends.

Device process, torch-free, pure. `ids` = prompt + emitted; `num_computed` of them are
in the cache. A forward computes some of the pending ones; when none but the newest was
pending it was a decode step, otherwise a chunk of prefill. A resumed sequence begins
with emitted ids and is computed like any prompt.

Invariant: 0 <= num_computed <= len(ids) <= context; a stop id is never among the
emitted ones.
"""

from __future__ import annotations

from typing import Any

from ipc.messages import Finished, Submit
from neurond.device.backend import Resident


class Sequence:
    """Owned by the engine; `cache` and `grammar` belong to the backend alone."""

    __slots__ = (
        "arrived_s",
        "cache",
        "expires_s",
        "grammar",
        "ids",
        "model",
        "num_cached",
        "num_computed",
        "pages",
        "stop_ids",
        "submit",
        "worker",
    )

    def __init__(
        self, worker: int, submit: Submit, model: Resident, now_s: float
    ) -> None:
        self.worker = worker
        self.submit = submit
        self.model = model
        self.ids = list(submit.ids)
        self.num_computed = 0
        self.num_cached = 0
        self.pages: list[int] = []
        self.cache: Any = None
        self.grammar: Any = None
        self.arrived_s = now_s
        self.expires_s = now_s + submit.deadline_s if submit.deadline_s > 0 else 0.0
        eos_ids = () if submit.sampling.ignore_eos else model.eos_ids
        self.stop_ids = frozenset((*submit.stop_ids, *eos_ids))

    @property
    def id(self) -> int:
        return self.submit.id

    @property
    def num_emitted(self) -> int:
        return len(self.ids) - self.submit.num_prompt

    @property
    def num_pending(self) -> int:
        return len(self.ids) - self.num_computed

    @property
    def banned_ids(self) -> frozenset[int]:
        """What may not be drawn now: no end before `min_tokens`."""
        early = self.num_emitted < self.submit.sampling.min_tokens
        return self.stop_ids if early else frozenset()

    @property
    def full(self) -> bool:
        """Nothing may be emitted any more."""
        return (
            self.num_emitted >= self.submit.max_tokens
            or len(self.ids) >= self.model.context
        )

    def append(self, token: int) -> str | None:
        """Take the drawn token. Returns the finish reason when it was the last."""
        if token in self.stop_ids:
            return "stop"
        self.ids.append(token)
        return "length" if self.full else None

    def finished(self, reason: str) -> Finished:
        submit = self.submit
        counts = (submit.num_prompt, self.num_emitted, self.num_cached)
        return Finished(submit.id, reason, *counts)
