"""Where one forward writes and reads the pool, worked out once for all layers.

Device process. Views of every layer of a group on a run come from one call, so a layer
only looks them up.

Invariant: lives for one forward.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing
from dataclasses import dataclass

import torch

from neurond.device.attention import KeyValue, window_mask
from neurond.device.batch import Batch, Run, Segment, clip, slots_of
from neurond.device.pool import Group, Views

_MAX_VIEWS = 6
"""More stretches than these are copied together: a call each would cost more."""
_ONE_VIEW = 1


@dataclass(frozen=True, slots=True)
class Stretches:
    """A segment's past in the pool: views per layer, or the slots to copy it from."""

    views: tuple[tuple[Views, Views], ...]
    slots: torch.Tensor | None

    def of(self, group: Group, layer: int) -> list[KeyValue]:
        if self.slots is None:
            return [(keys[layer], values[layer]) for keys, values in self.views]
        # token-major as in the pool: the strides are part of how a product is summed
        copies = [pool.index_select(0, self.slots) for pool in group.tokens(layer)]
        keys, values = (copy.transpose(0, 1).unsqueeze(0) for copy in copies)
        return [(keys, values)]


@dataclass(frozen=True, slots=True)
class GroupReads:
    """`write` are views of where all new tokens go, if that is one stretch.

    `rows` are, by layer, keys and values of each row, if each has one stretch. `masks`
    has an entry for each chunk that the window cuts.
    """

    write: tuple[Views, Views] | None
    rows: tuple[tuple[Views, ...], tuple[Views, ...]] | None
    stretches: tuple[Stretches, ...]
    masks: tuple[torch.Tensor | None, ...]


def group_reads(batch: Batch, group: Group) -> GroupReads:
    window = group.shape.window
    most = _ONE_VIEW if batch.joined else _MAX_VIEWS
    stretches = tuple(
        _stretches(group, s, _low(s, window), most) for s in batch.segments
    )
    masks = tuple(_mask(group, segment) for segment in batch.segments)
    rows = _rows(stretches[: batch.num_rows])
    return GroupReads(_write(batch, group), rows, stretches, masks)


def _low(segment: Segment, window: int) -> int:
    """The first token that the first query sees."""
    return max(0, segment.past + 1 - window) if window else 0


def _stretches(group: Group, segment: Segment, low: int, most: int) -> Stretches:
    """A row reads its own key back from the pool; a chunk has its own at hand."""
    high = segment.end if segment.length == 1 else segment.past
    runs = clip(segment.runs, low, high)
    if len(runs) <= most:
        return Stretches(tuple(group.views(run) for run in runs), None)
    device = group.keys.device
    return Stretches((), torch.tensor(slots_of(runs), device=device))


def _rows(
    stretches: Listing[Stretches],
) -> tuple[tuple[Views, ...], tuple[Views, ...]] | None:
    if not stretches or any(len(one.views) != 1 for one in stretches):
        return None
    keys = zip(*[one.views[0][0] for one in stretches], strict=True)
    values = zip(*[one.views[0][1] for one in stretches], strict=True)
    return tuple(keys), tuple(values)


def _mask(group: Group, segment: Segment) -> torch.Tensor | None:
    window = group.shape.window
    if segment.length == 1 or not window or segment.end <= window:
        return None
    low = _low(segment, window)
    return window_mask(segment.past, segment.end, low, window, group.keys)


def _write(batch: Batch, group: Group) -> tuple[Views, Views] | None:
    run = _one_run([_own(segment) for segment in batch.segments])
    return group.views(run) if run else None


def _own(segment: Segment) -> list[Run]:
    return clip(segment.runs, segment.past, segment.end)


def _one_run(runs: Listing[list[Run]]) -> Run | None:
    return runs[0][0] if len(runs) == 1 and len(runs[0]) == 1 else None
