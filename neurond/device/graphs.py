"""Decode steps captured as CUDA graphs, one per bucket of rows and length.

Device process, CUDA. A decode step of a small model is a thousand kernel launches; a
graph is one. Each bucket has an input buffer of fixed size and fixed meaning (see
`inputs`) and an output of fixed place. A step with fewer rows is filled up with rows
that read and write a page of their own, which belongs to no sequence.

Invariant: all buckets are captured before the model counts as loaded; a step that fits
none runs uncaptured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Listing
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from neurond.device.batch import Batch, Segment
from neurond.device.inputs import Inputs, divide, flatten

Run = Callable[[Batch, Inputs], torch.Tensor]
_WARM_UPS = 2
_CAPTURABLE = frozenset(
    ("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "olmo3", "phi", "phi3")
)
"""Model types whose forward never waits for the device; a mixture of experts does."""


class Recorder(Protocol):
    """Where steps are captured: on CUDA, or in a test anywhere."""

    def record(
        self, step: Callable[[], torch.Tensor]
    ) -> tuple[Callable[[], None], torch.Tensor]:
        """Returns what repeats the step, and the output that it fills each time."""

    def upload(self, numbers: list[int], buffer: torch.Tensor) -> None: ...


@dataclass(frozen=True, slots=True)
class Bucket:
    """A captured step: up to `rows` rows of up to `pages` pages each."""

    rows: int
    pages: int
    buffer: torch.Tensor
    replay: Callable[[], None]
    output: torch.Tensor


class DecodeGraphs:
    """`spare_page` is no sequence's."""

    def __init__(self, recorder: Recorder, page_tokens: int, spare_page: int) -> None:
        self._recorder = recorder
        self._page_tokens = page_tokens
        self._spare_page = spare_page
        self._buckets: list[Bucket] = []

    def capture(
        self, run: Run, sizes: Listing[tuple[int, int]], device: torch.device
    ) -> Iterator[None]:
        """Capture a bucket per (rows, pages), the largest first: they share memory."""
        for rows, pages in sorted(sizes, reverse=True):
            batch = self._filled(Batch((), 0, [], [], [], []), rows, pages)
            numbers, parts = flatten(batch, pages)
            buffer = torch.tensor(numbers, device=device)
            step = _Step(run, batch, buffer, parts, pages * self._page_tokens)
            replay, output = self._recorder.record(step)
            self._buckets.append(Bucket(rows, pages, buffer, replay, output))
            yield
        self._buckets.reverse()

    def fits(self, batch: Batch) -> bool:
        return self._bucket(batch) is not None

    def run(self, batch: Batch) -> torch.Tensor:
        """Logits [rows, V], valid until the next step of the same bucket."""
        bucket = self._bucket(batch)
        assert bucket is not None
        filled = self._filled(batch, bucket.rows, bucket.pages)
        numbers, _ = flatten(filled, bucket.pages)
        self._recorder.upload(numbers, bucket.buffer)
        bucket.replay()
        return bucket.output[: len(batch.segments)]

    def _bucket(self, batch: Batch) -> Bucket | None:
        if batch.num_rows != len(batch.kept) or batch.num_rows != len(batch.segments):
            return None
        pages = max(len(segment.pages) for segment in batch.segments)
        fitting = [b for b in self._buckets if b.rows >= batch.num_rows]
        return next((b for b in fitting if b.pages >= pages), None)

    def _filled(self, batch: Batch, rows: int, pages: int) -> Batch:
        """With rows on the spare page behind its own."""
        missing = range(len(batch.segments), rows)
        slot = self._spare_page * self._page_tokens
        spare = tuple(
            Segment(at, at, 1, 0, ((slot, 1),), [self._spare_page], 1) for at in missing
        )
        zeros = [0] * len(missing)
        return Batch(
            segments=batch.segments + spare,
            num_rows=rows,
            ids=batch.ids + zeros,
            positions=batch.positions + zeros,
            slots=batch.slots + [slot] * len(missing),
            kept=batch.kept + list(missing),
        )


@dataclass(frozen=True, slots=True)
class _Step:
    """What is captured: the conversions of the buffer's parts, and the forward."""

    run: Run
    batch: Batch
    buffer: torch.Tensor
    parts: list[int]
    longest: int

    def __call__(self) -> torch.Tensor:
        inputs = divide(self.buffer, self.parts, self.batch)
        return self.run(self.batch, replace(inputs, longest_past=self.longest))


class CudaRecorder:
    """Captures into one pool of memory for all buckets."""

    def __init__(self, upload: Callable[[list[int], torch.Tensor], None]) -> None:
        self._upload = upload
        self._memory: Any = None

    def record(
        self, step: Callable[[], torch.Tensor]
    ) -> tuple[Callable[[], None], torch.Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            output = step()
        self._memory = graph.pool()
        return graph.replay, output

    def upload(self, numbers: list[int], buffer: torch.Tensor) -> None:
        self._upload(numbers, buffer)


def is_capturable(module: Any) -> bool:
    """Whether a decode step is kernels alone. A wait inside a capture is a fault of the
    device, so only what is known is tried."""
    text = module.config.get_text_config(decoder=True)
    return text.model_type in _CAPTURABLE


def sizes_for(
    max_rows: int, context: int, page_tokens: int, max_pages: int
) -> list[tuple[int, int]]:
    """(rows, pages) to capture: rows double, lengths grow fourfold."""
    longest = min(-(-context // page_tokens), max_pages)
    rows = [1]
    while rows[-1] < max_rows:
        rows.append(min(2 * rows[-1], max_rows))
    pages = [min(8, longest)]
    while pages[-1] < longest:
        pages.append(min(4 * pages[-1], longest))
    return [(r, p) for r in rows for p in pages]
