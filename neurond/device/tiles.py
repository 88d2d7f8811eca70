"""Every forward in one of a few shapes, each id a row of its own: invariant numerics.

Device process. A kernel sums in an order that depends on the shape of what it is given,
so the same id gives other bits in another company. Here the module sees tiles of a few
sizes only, filled up with rows for nobody, and a chunk is as many rows, each of which
attends to exactly its own keys, laid out in one stretch:

    works    chunk of 21 ids   row   row
    tiles    [ 16 rows ] [ 5 + 1 + 1 rows · 9 for nobody ]

A model with recurrent states computes a chunk an id at a time, in their step form; rows
of different sequences share a tile. What a row gives then depends neither on its place
nor on its neighbours, as far as the kernels' rows are independent within one shape,
which `selftest` proves.

Invariants: the ids of one sequence are in order, and its keys are written before they
are read; a computation that raises leaves every state as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Listing
from dataclasses import dataclass

import torch

from neurond.device.backend import Work
from neurond.device.batch import (
    PADDING,
    Batch,
    Run,
    Segment,
    clip,
    num_kept_of,
    runs_of,
    slots_of,
)
from neurond.device.computing import Logits
from neurond.device.pagedmodel import PagedModel
from neurond.device.recurrent import State
from neurond.device.sequence import Sequence

TILE = 16
"""Rows of the tile that every model has to do with; other sizes are for speed."""
SIZES = (1, 4, TILE, 64, 256)


@dataclass(frozen=True, slots=True)
class Place:
    """One id of a work, its position and slot, and the runs of its whole sequence."""

    work: int
    id: int
    position: int
    slot: int
    runs: tuple[Run, ...]
    pages: Listing[int]
    is_kept: bool


class TiledModel:
    """Computes a paged model's works in tiles of `sizes` rows."""

    def __init__(self, paged: PagedModel, sizes: tuple[int, ...] = (TILE,)) -> None:
        self.spec = paged.spec
        self.sizes = sizes
        self.paged = paged
        self._has_states = bool(paged.states.layers)
        self.most_rows = TILE if self._has_states else SIZES[-1]
        self._spare_slot = paged.states.take() if self._has_states else -1
        if self._has_states:
            paged.states.clear(self._spare_slot)

    def compute(self, works: Listing[Work]) -> Logits:
        everything = [
            places_of(index, work, self.spec.page_tokens)
            for index, work in enumerate(works)
        ]
        if not self._has_states:
            rows = self._compute([place for places in everything for place in places])
            return Logits(torch.cat(rows), _spans(works))
        return self._compute_states(works, everything)

    def go_on(self, work: Work, seconds: float) -> Logits:
        """It never pauses."""
        return self.compute([work])

    def unsound(self, works: Listing[Work]) -> list[int]:
        return self.paged.unsound(works)

    def release(self, sequence: Sequence) -> None:
        self.paged.release(sequence)

    def clear_pages(self, pages: Listing[int]) -> None:
        self.paged.clear_pages(pages)

    def copy_page(self, source: int, target: int, num_tokens: int) -> None:
        self.paged.copy_page(source, target, num_tokens)

    def save_state(self, sequence: Sequence) -> State:
        return self.paged.save_state(sequence)

    def load_state(self, sequence: Sequence, state: State) -> None:
        self.paged.load_state(sequence, state)

    def _compute(
        self, places: Listing[Place], slots: Listing[int] = ()
    ) -> list[torch.Tensor]:
        """The kept rows of each tile; `slots`: of the places' states, if they do."""
        rows = []
        begin = 0
        for size in split(len(places), self.sizes):
            part = places[begin : begin + size]
            held = [*slots[begin : begin + size]]
            held += [self._spare_slot] * (size - len(held))
            batch = make_tile(part, size, self._spare(), self.sizes)
            logits = self.paged.run_tile(batch, held)
            rows.append(logits[: sum(place.is_kept for place in part)])
            begin += size
        return rows

    def _compute_states(
        self, works: Listing[Work], everything: Listing[Listing[Place]]
    ) -> Logits:
        """An id of each work at a time."""
        states = self.paged.states
        slots = [self.paged.slot_of(work.sequence) for work in works]
        before = {slot: states.save(slot) for slot in slots}
        for slot, work in zip(slots, works, strict=True):
            if work.sequence.num_computed == 0:
                states.clear(slot)
        try:
            rows = self._step_all(everything, slots)
        except BaseException:
            for slot, state in before.items():
                states.load(slot, state)
            raise
        kept = [row for mine in rows for row in mine]
        return Logits(torch.stack(kept) if kept else torch.empty(0), _spans(works))

    def _step_all(
        self, everything: Listing[Listing[Place]], slots: Listing[int]
    ) -> list[list[torch.Tensor]]:
        """By work, its kept rows [V]."""
        rows: list[list[torch.Tensor]] = [[] for _ in everything]
        for step in range(max(len(places) for places in everything)):
            moving = [i for i, places in enumerate(everything) if step < len(places)]
            places = [everything[i][step] for i in moving]
            found = self._compute(places, [slots[i] for i in moving])
            kept = (place.work for place in places if place.is_kept)
            for work, row in zip(kept, torch.cat(found).unbind(0), strict=True):
                rows[work].append(row)
        return rows

    def _spare(self) -> Place:
        """A row for nobody, on the page that no sequence has."""
        page = self.spec.max_pages
        slot = page * self.spec.page_tokens
        return Place(PADDING, 0, 0, slot, ((slot, 1),), (page,), False)


def split(count: int, sizes: Listing[int]) -> Iterator[int]:
    """Sizes of the tiles for so many rows, the last one perhaps not full.

    Up to a TILE the weights are what costs, so it is filled up; a larger one when it is
    more than half full.
    """
    while count > 0:
        above = min((s for s in sizes if s >= count), default=0)
        below = max((s for s in sizes if s <= count), default=0)
        fits = above and (above <= TILE or 2 * count > above or not below)
        size = above if fits else below
        yield size
        count -= size


def places_of(index: int, work: Work, page_tokens: int) -> list[Place]:
    """The ids of one work. Raises ValueError when its pages hold too little."""
    sequence = work.sequence
    begin = sequence.num_computed
    end = begin + work.num_ids
    runs = runs_of(sequence.pages, page_tokens, end)
    pages = sequence.pages[: -(-end // page_tokens)]
    slots = slots_of(clip(runs, begin, end))
    first_kept = end - num_kept_of(work)
    return [
        Place(index, token, at, slot, runs, pages, at >= first_kept)
        for at, token, slot in zip(
            range(begin, end), sequence.ids[begin:end], slots, strict=True
        )
    ]


def make_tile(
    places: Listing[Place], size: int, spare: Place, sizes: Listing[int]
) -> Batch:
    """A batch of `size` rows; as many logits are computed as one of `sizes`."""
    filled = [*places, *[spare] * (size - len(places))]
    segments = tuple(
        Segment(p.work, row, 1, p.position, p.runs, p.pages, int(p.is_kept))
        for row, p in enumerate(filled)
    )
    kept = [row for row, place in enumerate(filled) if place.is_kept] or [0]
    num_kept = min(s for s in sizes if s >= len(kept))
    return Batch(
        segments,
        len(places),
        [place.id for place in filled],
        [place.position for place in filled],
        [place.slot for place in filled],
        kept + kept[-1:] * (num_kept - len(kept)),
        joined=True,
    )


def _spans(works: Listing[Work]) -> tuple[tuple[int, int], ...]:
    """Kept rows come in the order of the works."""
    spans = []
    first = 0
    for work in works:
        count = num_kept_of(work)
        spans.append((first, count))
        first += count
    return tuple(spans)
