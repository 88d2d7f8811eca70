"""One sequence on the device: its ids, how many of them are computed, when it ends.

Device process, torch-free, pure. `ids` = prompt + emitted; `num_computed` of them are
in the cache. A forward computes some of the pending ones; when none but the newest was
pending it was a decode step, otherwise a chunk of prefill. A resumed sequence begins
with emitted ids and is computed like any prompt.

`held_by` is about to compute `held_common` tokens of its prompt, None = nobody.
`open_ids` are the size of a chunk that is paused in the middle, 0 = none. `num_proven`
computed tokens have a finite result behind them. `accepted`: its worker was told that
it will be served. `pages`, `states` (not
yet published, by position), `node` and `num_published` are the KV cache's.

Invariant: 0 <= num_proven <= num_computed <= len(ids) <= window <= context; a stop id
is never among the emitted ones.
"""

from __future__ import annotations

import math
from typing import Any

from ipc.messages import Finished, Submit
from neurond.device.backend import Resident


class Sequence:
    """Owned by the engine; `cache` and `grammar` belong to the backend alone."""

    __slots__ = (
        "accepted",
        "arrived_s",
        "cache",
        "cuts",
        "expires_s",
        "grammar",
        "held_by",
        "held_common",
        "held_until_s",
        "ids",
        "model",
        "node",
        "num_cached",
        "num_computed",
        "num_preempted",
        "num_proven",
        "num_published",
        "num_scored",
        "open_ids",
        "pages",
        "states",
        "stop_ids",
        "submit",
        "window",
        "worker",
    )

    def __init__(
        self,
        worker: int,
        submit: Submit,
        model: Resident,
        now_s: float,
        *,
        window: int = 0,
    ) -> None:
        """`window`: its own limit of tokens, where that is below the model's."""
        self.worker = worker
        self.submit = submit
        self.model = model
        self.ids = list(submit.ids)
        self.window = min(window or model.context, model.context)
        self.num_cached = 0
        self.num_scored = 0
        self.num_preempted = 0
        self.accepted = False
        self.held_by: Sequence | None = None
        self.held_common = 0
        self.held_until_s = math.inf
        self.cache: Any = None
        self.grammar: Any = None
        self.reset()
        self.arrived_s = now_s
        self.expires_s = now_s + submit.deadline_s if submit.deadline_s > 0 else 0.0
        eos_ids = () if submit.sampling.ignore_eos else model.eos_ids
        self.stop_ids = frozenset((*submit.stop_ids, *eos_ids))
        self.cuts = self._boundaries() if model.cache.state_bytes else ()

    def reset(self) -> None:
        """Nothing is computed (any more); `ids` stay what they are."""
        self.num_computed = 0
        self.num_proven = 0
        self.num_published = 0
        self.open_ids = 0
        self.pages: list[int] = []
        self.states: dict[int, Any] = {}
        self.node: Any = None

    @property
    def id(self) -> int:
        return self.submit.id

    @property
    def trial_group(self) -> int:
        """Who may be in a step with it, as it may have killed a device; 0 = anyone."""
        on_trial = self.num_emitted < self.submit.trial_until
        return self.submit.trial_group if on_trial else 0

    @property
    def is_new(self) -> bool:
        """It never had a seat, here or on a device that died."""
        return self.num_preempted == 0 and self.submit.attempt == 0

    @property
    def num_emitted(self) -> int:
        return len(self.ids) - self.submit.num_prompt

    @property
    def num_pending(self) -> int:
        return len(self.ids) - self.num_computed

    @property
    def decodes(self) -> bool:
        """Only the newest id is pending: it takes one row of a step."""
        return self.num_pending == 1

    @property
    def is_fresh(self) -> bool:
        """Nothing was drawn for it here yet."""
        return len(self.ids) == len(self.submit.ids)

    @property
    def was_held(self) -> bool:
        return self.held_until_s < math.inf

    def queued_too_long(self, now_s: float, patience_s: float) -> bool:
        """Who has begun to answer isn't sent away."""
        return self.is_new and now_s >= self.arrived_s + patience_s

    def part(self, num_tokens: int) -> int:
        """How many ids to compute next, given up to so many: states are saved at the
        cuts."""
        cut = next((c for c in self.cuts if c > self.num_computed), len(self.ids))
        return min(num_tokens, cut - self.num_computed)

    def _boundaries(self) -> tuple[int, ...]:
        """Where another prompt may part from this one (S80, S82): past the prompt's
        last special token, and at its end."""
        prompt = self.submit.ids[: self.submit.num_prompt]
        special = self.model.eos_ids | self.stop_ids
        past = [at + 1 for at, token in enumerate(prompt) if token in special]
        return tuple(sorted({*past[-1:], len(prompt)}))

    @property
    def wants_prompt(self) -> bool:
        """The prompt must be computed even when no token is wanted."""
        return self.scores_prompt or self.submit.embed

    @property
    def most_tokens(self) -> int:
        """How long it can get."""
        return min(self.window, self.submit.num_prompt + self.submit.max_tokens)

    @property
    def scores_prompt(self) -> bool:
        return self.submit.sampling.prompt_logprobs >= 0

    @property
    def banned_ids(self) -> frozenset[int]:
        """What may not be drawn now: no end before `min_tokens`."""
        early = self.num_emitted < self.submit.sampling.min_tokens
        return self.stop_ids if early else frozenset()

    @property
    def full(self) -> bool:
        """Nothing may be emitted any more; for a vector nothing ever is."""
        most = min(self.submit.num_prompt + self.submit.max_tokens, self.window)
        return len(self.ids) >= most and not self.submit.embed

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
