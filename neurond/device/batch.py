"""One forward as numbers: which ids at which positions, and where their KV lies.

Device process, torch-free, pure. Works are packed ragged, rows of one id first, so that
they form a block; every length is exact and nothing is padded. Token t of a sequence
lies in slot `pages[t // page_tokens] * page_tokens + t % page_tokens` of the pool; a
run is a stretch of consecutive slots.

    packed     | row | row | row |   chunk        | chunk   |
    segment      s0    s1    s2    s3               s4

Invariant: a segment reads and writes slots of its own sequence's pages alone.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing
from dataclasses import dataclass

from neurond.device.backend import Work

Run = tuple[int, int]
"""(first slot, number of tokens)."""
PADDING = -1


@dataclass(frozen=True, slots=True)
class Segment:
    """The ids of one work: packed at [start, start + length), positions from `past`.

    `runs` cover the sequence's tokens [0, past + length), in order. `num_kept` of its
    last rows have logits that are wanted.
    """

    work: int
    start: int
    length: int
    past: int
    runs: tuple[Run, ...]
    pages: Listing[int]
    num_kept: int

    @property
    def end(self) -> int:
        """Tokens in the cache when the forward is done."""
        return self.past + self.length


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything a forward is made of. `num_rows` segments of one id come first.

    Segments of work PADDING come last; what they compute is for nobody. `joined`: what
    a row reads is laid out in one stretch, wherever its pages lie.

    `kept` are the packed indices whose logits are computed, in order: those wanted, or
    the very last one, since not every head takes no rows at all.
    """

    segments: tuple[Segment, ...]
    num_rows: int
    ids: list[int]
    positions: list[int]
    slots: list[int]
    kept: list[int]
    joined: bool = False


def make_batch(works: Listing[Work], page_tokens: int) -> Batch:
    """Pack the works. Raises ValueError when a sequence's pages hold too little."""
    order = sorted(range(len(works)), key=lambda index: works[index].num_ids > 1)
    segments: list[Segment] = []
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    kept: list[int] = []
    for index in order:
        segment = _segment(index, works[index], len(ids), page_tokens)
        segments.append(segment)
        ids += works[index].sequence.ids[segment.past : segment.end]
        positions += range(segment.past, segment.end)
        slots += slots_of(clip(segment.runs, segment.past, segment.end))
        kept += range(len(ids) - segment.num_kept, len(ids))
    num_rows = sum(segment.length == 1 for segment in segments)
    kept = kept or [len(ids) - 1]
    return Batch(tuple(segments), num_rows, ids, positions, slots, kept)


def spans_of(batch: Batch) -> tuple[tuple[int, int], ...]:
    """By work: (first, count) of its rows among the kept ones."""
    spans = [(0, 0)] * len(batch.segments)
    first = 0
    for segment in batch.segments:
        spans[segment.work] = (first, segment.num_kept)
        first += segment.num_kept
    return tuple(spans)


def num_kept_of(work: Work) -> int:
    """How many of its last rows have wanted logits: all for scores, or one."""
    return work.num_ids if wants_scores(work) else int(work.draws)


def wants_scores(work: Work) -> bool:
    """Whether some id of the work is a prompt token with a score to give."""
    submit = work.sequence.submit
    begin = work.sequence.num_computed
    return submit.sampling.prompt_logprobs >= 0 and begin < submit.num_prompt


def runs_of(pages: Listing[int], page_tokens: int, num_tokens: int) -> tuple[Run, ...]:
    """The first `num_tokens` tokens in stretches. Raises ValueError if they're more."""
    num_pages = -(-num_tokens // page_tokens)
    if num_pages > len(pages):
        raise ValueError(f"{len(pages)} pages don't hold {num_tokens} tokens")
    runs: list[Run] = []
    first = after = -1
    for page in pages[:num_pages]:
        if page != after:
            if after > first:
                runs.append((first * page_tokens, (after - first) * page_tokens))
            first = page
        after = page + 1
    if num_pages:
        unused = num_pages * page_tokens - num_tokens
        runs.append((first * page_tokens, (after - first) * page_tokens - unused))
    return tuple(runs)


def clip(runs: Listing[Run], begin: int, end: int) -> list[Run]:
    """The part of the runs that holds tokens [begin, end)."""
    clipped: list[Run] = []
    token = 0
    for slot, count in runs:
        low, high = max(begin, token), min(end, token + count)
        if low < high:
            clipped.append((slot + low - token, high - low))
        token += count
    return clipped


def slots_of(runs: Listing[Run]) -> list[int]:
    return [slot for first, count in runs for slot in range(first, first + count)]


def _segment(index: int, work: Work, start: int, page_tokens: int) -> Segment:
    sequence = work.sequence
    past = sequence.num_computed
    end = past + work.num_ids
    runs = runs_of(sequence.pages, page_tokens, end)
    pages = sequence.pages[: -(-end // page_tokens)]
    return Segment(index, start, work.num_ids, past, runs, pages, num_kept_of(work))
