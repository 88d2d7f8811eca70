"""What the fake backend keeps per sequence, and the scores it makes up.

Device process, torch-free. There is no KV, so pages are handled by the engine alone.
A recurrent state is how many tokens went through it: computing from anywhere else
fails, as a real one would give wrong answers.

A chunk in stints takes one to four of them, by a seed, a part of its tokens each.

Options of a load: pauses (the seed, 0 = none), page_tokens, page_bytes (0: the budget
is no limit), pages (of the pool), state_bytes (not 0: recurrent), shares (true),
oom_tokens (a forward of more tokens is out of memory), token_ms (per prompt token,
besides prefill_ms).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ipc.errors import HostError
from ipc.messages import TopScores
from neurond.device.backend import CacheSpec, Work
from neurond.device.fakescript import Script

_PAGE_TOKENS = 16
_NUM_PAGES = 1 << 16
_MOST_STINTS = 4


@dataclass(slots=True)
class FakeCache:
    """`num_tokens` are in the recurrent state.

    A chunk of `num_open` ids is under way, in `num_stints` of which so many are left.
    """

    script: Script
    num_tokens: int = 0
    num_open: int = 0
    num_stints: int = 1
    num_left: int = 1

    def go_on(self, work: Work) -> bool:
        """A stint of the work, or all that is left if nobody waits. Whether it is
        done."""
        if not work.pause_s or self.num_open != work.num_ids:
            self._begin(work)
        self.num_left -= 1 if work.pause_s < math.inf else self.num_left
        if self.num_left:
            return False
        self.num_open = 0
        return True

    def _begin(self, work: Work) -> None:
        sequence = work.sequence
        self.num_stints, self.num_open = 1, work.num_ids
        seed = sequence.model.body.options.get("pauses", 0)
        if work.pause_s and seed:
            chance = random.Random(f"{seed} {sequence.id} {sequence.num_computed}")
            self.num_stints = chance.randint(1, _MOST_STINTS)
        self.num_left = self.num_stints

    def advance(self, work: Work) -> None:
        """Raises HostError when the state is another position's."""
        begin = work.sequence.num_computed
        if work.sequence.model.cache.state_bytes and begin != self.num_tokens:
            text = f"the state holds {self.num_tokens} tokens, {begin} are computed"
            raise HostError(text)
        self.num_tokens = begin + work.num_ids


def cache_spec(options: Mapping[str, Any]) -> CacheSpec:
    return CacheSpec(
        page_tokens=int(options.get("page_tokens", _PAGE_TOKENS)),
        page_bytes=int(options.get("page_bytes", 0)),
        max_pages=int(options.get("pages", _NUM_PAGES)),
        state_bytes=int(options.get("state_bytes", 0)),
        shares=bool(options.get("shares", True)),
    )


def logprob(token: int) -> float:
    """The same for a token wherever it stands."""
    return -(1 + token % 8) / 8


def top_scores(token: int, count: int) -> TopScores:
    """The token and those after it."""
    return tuple((token + n, logprob(token) - n) for n in range(max(0, count)))


def prompt_scores(work: Work) -> tuple[tuple[float, TopScores], ...]:
    """Of the prompt tokens in this work but the first of all, if asked for."""
    sequence = work.sequence
    if not sequence.scores_prompt:
        return ()
    begin = max(1, sequence.num_computed)
    end = min(sequence.num_computed + work.num_ids, sequence.submit.num_prompt)
    count = sequence.submit.sampling.prompt_logprobs
    ids = sequence.ids[begin:end]
    return tuple((logprob(token), top_scores(token, count)) for token in ids)
