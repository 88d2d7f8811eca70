"""A model whose layers keep what our pool doesn't know: a cache per sequence.

Device process. transformers' own cache class grows with the sequence; works run one by
one. Pages are only counted, by what a token was measured to take; nothing is shared.

Invariant: a cache that a failed forward has torn is made again from the ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Listing
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from neurond.device.backend import CacheSpec, Work
from neurond.device.batch import num_kept_of
from neurond.device.computing import Held, Logits, collect, held
from neurond.device.loader import Body
from neurond.device.sequence import Sequence


class PrivateModel:
    """Owns nothing; every cache hangs on its sequence."""

    def __init__(self, body: Body, spec: CacheSpec) -> None:
        self.spec = spec
        self._body = body

    def compute(self, works: Listing[Work]) -> Logits:
        parts = [([index], self._compute(work)) for index, work in enumerate(works)]
        return collect(len(works), parts)

    def go_on(self, work: Work, seconds: float) -> Logits:
        """It never pauses."""
        return self.compute([work])

    def unsound(self, works: Listing[Work]) -> list[int]:
        """None: nothing is shared."""
        return []

    def release(self, sequence: Sequence) -> None:
        """Its cache goes with `sequence.cache`."""

    def clear_pages(self, pages: Listing[int]) -> None:
        """There are none."""

    def copy_page(self, source: int, target: int, num_tokens: int) -> None:
        raise AssertionError("pages of this model are not shared")

    def save_state(self, sequence: Sequence) -> Any:
        raise AssertionError("states of this model are not shared")

    def load_state(self, sequence: Sequence, state: Any) -> None:
        raise AssertionError("states of this model are not shared")

    def _compute(self, work: Work) -> Logits:
        sequence = work.sequence
        mine = held(sequence)
        end = sequence.num_computed + work.num_ids
        if mine.cache is None or mine.num_computed != sequence.num_computed:
            mine.cache, mine.num_computed = new_cache(self._body.module), 0
        begin, mine.num_computed = mine.num_computed, -1
        num_kept = num_kept_of(work)
        rows = self._forward(mine, sequence.ids[begin:end], begin, max(1, num_kept))
        mine.num_computed = end
        return Logits(rows, ((0, num_kept),))

    def _forward(
        self, mine: Held, ids: list[int], begin: int, num_kept: int
    ) -> torch.Tensor:
        device = self._body.device
        more = {"logits_to_keep": num_kept} if self._body.last_only else {}
        output = self._body.module(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.arange(begin, begin + len(ids), device=device)[None],
            past_key_values=mine.cache,
            use_cache=True,
            **more,
        )
        return output.logits[0, -num_kept:]


def new_cache(module: Any) -> Any:
    return DynamicCache(config=module.config.get_text_config(decoder=True))


def sizes(short: Any, long: Any, num_tokens: int) -> tuple[int, int]:
    """(bytes of a token, bytes of a sequence besides), from caches that hold so many
    tokens and twice as many."""
    first, second = _num_bytes(short), _num_bytes(long)
    per_token = max(0, -(-(second - first) // num_tokens))
    return per_token, max(0, first - per_token * num_tokens)


def _num_bytes(cache: Any) -> int:
    return sum(tensor.nbytes for layer in cache.layers for tensor in _tensors(layer))


def _tensors(layer: Any) -> Iterator[torch.Tensor]:
    for value in vars(layer).values():
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from (t for t in value.values() if isinstance(t, torch.Tensor))
