"""What the runner asks of a model that is ready to serve, however it keeps its KV.

Device process. `paged` pools and `private` caches answer to the same three calls; what
they keep per sequence hangs on `sequence.cache`.

Invariant: a computation that raises leaves every sequence as computable as before.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from neurond.device.backend import CacheSpec, Work
from neurond.device.sequence import Sequence


@dataclass(slots=True)
class Held:
    """Of one sequence. `slot`: of its recurrent state; `cache`: its own, where pages
    are only counted, valid for `num_computed`; `tails`: logits [1, V] behind its
    last id so far, by the number of ids, while its prompt is being scored; `stint`: a
    chunk that is paused.
    """

    slot: int = -1
    cache: Any = None
    num_computed: int = 0
    tails: dict[int, torch.Tensor] = field(default_factory=dict)
    stint: Any = None


@dataclass(frozen=True, slots=True)
class Logits:
    """Of one forward: `rows` [K, V]; work i owns `spans[i]` = (first row, count).

    A work has all its rows where its prompt is scored, its last one where it draws,
    else none.
    """

    rows: torch.Tensor
    spans: tuple[tuple[int, int], ...]

    def of(self, index: int) -> torch.Tensor:
        """The rows of one work."""
        first, count = self.spans[index]
        return self.rows[first : first + count]


class Computing(Protocol):
    """A model, its weights and whatever it remembers."""

    spec: CacheSpec

    def compute(self, works: Listing[Work]) -> Logits: ...

    def go_on(self, work: Work, seconds: float) -> Logits | None:
        """Begin or continue a work for about so long; None: it isn't done yet."""

    def unsound(self, works: Listing[Work]) -> list[int]:
        """Indices of the works just computed that left in pages, which others may come
        to share, what isn't finite."""

    def release(self, sequence: Sequence) -> None:
        """Drop what is held for it."""

    def clear_pages(self, pages: Listing[int]) -> None: ...

    def copy_page(self, source: int, target: int, num_tokens: int) -> None: ...

    def save_state(self, sequence: Sequence) -> Any: ...

    def load_state(self, sequence: Sequence, state: Any) -> None: ...


def held(sequence: Sequence) -> Held:
    """What is held for the sequence; made on first use."""
    if sequence.cache is None:
        sequence.cache = Held()
    found: Held = sequence.cache
    return found


def collect(num_works: int, parts: Listing[tuple[Listing[int], Logits]]) -> Logits:
    """One forward's logits from those of its parts: (indices of the works, logits)."""
    if len(parts) == 1:
        return parts[0][1]
    spans = [(0, 0)] * num_works
    first = 0
    for indices, logits in parts:
        for index, (start, count) in zip(indices, logits.spans, strict=True):
            spans[index] = (first + start, count)
        first += logits.rows.shape[0]
    return Logits(torch.cat([logits.rows for _, logits in parts]), tuple(spans))
