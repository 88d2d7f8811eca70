"""The tensors of one forward.

Device process. On the CPU they are made from the batch's lists. For CUDA everything
goes through one pinned buffer in one asynchronous copy; views of its image on the
device are the inputs:

    int64   ids[N] · positions[N] · slots[N] · kept[K] · first row of each segment[S+1]
            · tokens in the cache of each[S] · page table[S, P]

Invariant: a pinned buffer isn't written while a copy from it may be under way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from neurond.device.batch import Batch


@dataclass(frozen=True, slots=True)
class Inputs:
    """`ids` and `positions` are [1, N]; the last three are for a kernel with tables."""

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    kept: torch.Tensor
    starts: torch.Tensor | None = None
    used: torch.Tensor | None = None
    table: torch.Tensor | None = None
    longest_query: int = 0
    longest_past: int = 0


def on_host(batch: Batch) -> Inputs:
    return Inputs(
        ids=torch.tensor(batch.ids)[None],
        positions=torch.tensor(batch.positions)[None],
        slots=torch.tensor(batch.slots),
        kept=torch.tensor(batch.kept, dtype=torch.long),
    )


def flatten(batch: Batch, width: int) -> tuple[list[int], list[int]]:
    """All numbers of a batch, and the sizes of the seven parts; `width` is P."""
    starts = [*[segment.start for segment in batch.segments], len(batch.ids)]
    used = [segment.end for segment in batch.segments]
    table: list[int] = []
    for segment in batch.segments:
        table += segment.pages
        table += [0] * (width - len(segment.pages))
    parts = (batch.ids, batch.positions, batch.slots, batch.kept, starts, used, table)
    return [n for part in parts for n in part], [len(part) for part in parts]


def divide(image: torch.Tensor, sizes: list[int], batch: Batch) -> Inputs:
    """The inputs as views of one flat int64 tensor on the device."""
    ids, positions, slots, kept, starts, used, table = image.split(sizes)
    return Inputs(
        ids=ids[None],
        positions=positions[None],
        slots=slots,
        kept=kept,
        starts=starts.int(),
        used=used.int(),
        table=table.int().view(len(batch.segments), -1),
        longest_query=max(segment.length for segment in batch.segments),
        longest_past=max(segment.end for segment in batch.segments),
    )


class Staging:
    """Two pinned buffers in turn, each with the event of its last copy."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers = [torch.empty(0, dtype=torch.long) for _ in range(2)]
        self._events = [torch.cuda.Event() for _ in range(2)]
        self._turn = 0

    def upload(
        self, numbers: list[int], image: torch.Tensor | None = None
    ) -> torch.Tensor:
        """A flat tensor on the device, `image` or a new one, filled in stream order."""
        self._turn ^= 1
        self._events[self._turn].synchronize()  # long done but in a first few steps
        if self._buffers[self._turn].numel() < len(numbers):
            size = max(4096, 2 * len(numbers))
            self._buffers[self._turn] = torch.empty(
                size, dtype=torch.long, pin_memory=True
            )
        pinned = self._buffers[self._turn][: len(numbers)]
        pinned.copy_(torch.tensor(numbers, dtype=torch.long))
        if image is None:
            image = torch.empty(len(numbers), dtype=torch.long, device=self._device)
        image.copy_(pinned, non_blocking=True)
        self._events[self._turn].record()
        return image


class Feed:
    """A batch's tensors, wherever the model is."""

    def __init__(self, device: torch.device, *, tables: bool) -> None:
        """`tables`: a kernel wants them, wherever it runs."""
        self._staging = Staging(device) if device.type == "cuda" else None
        self._tables = tables

    def inputs(self, batch: Batch) -> Inputs:
        if self._staging is None and not self._tables:
            return on_host(batch)
        width = max(len(segment.pages) for segment in batch.segments)
        numbers, sizes = flatten(batch, width)
        if self._staging is None:
            return divide(torch.tensor(numbers), sizes, batch)
        return divide(self._staging.upload(numbers), sizes, batch)

    def upload(self, numbers: list[int], image: torch.Tensor) -> None:
        """Fill a flat tensor on a CUDA device."""
        assert self._staging is not None
        self._staging.upload(numbers, image)
