"""Does a model give the same bits in every situation? Asked before it serves so.

Device process. A prompt of repetitive, special and changing ids is computed alone; then
beside others, in chunks, one id at a time, from copied pages, and anew on other pages.
Every logit has to be equal, bit for bit. Which sizes of tiles agree with one another is
found the same way.

Invariants: it leaves nothing in the model; it ends in time, with an answer or refused.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from collections.abc import Sequence as Listing
from itertools import cycle, islice

import torch

from neurond.device.backend import Resident, Work
from neurond.device.computing import Computing
from neurond.device.sequence import Sequence
from neurond.device.tiles import SIZES, TILE, TiledModel
from neurond.device.trial import sequence_of
from neurond.device.weights import refuse

_TOKENS = 40
_FEW_TOKENS = 24
_BEHIND_A_PAGE = 8
_LONGEST_PAGE = 64
_FEW_ROWS = 12
_ONE_BY_ONE = 6

Steps = Generator[None, None, None]
Found = Generator[None, None, torch.Tensor]


class SelfTest:
    """One model's. Every generator yields behind each forward."""

    def __init__(
        self, model: Resident, computing: Computing, time_limit_s: float
    ) -> None:
        self._model = model
        self._computing = computing
        self._size = computing.spec.page_tokens
        self._time_limit_s = time_limit_s
        self._ends_s = time.monotonic() + time_limit_s
        self._half = computing.spec.max_pages // 2
        room = min(model.context, self._half * self._size)
        spec = computing.spec
        by_id = spec.state_bytes > 0 or not spec.shares
        wanted = _FEW_TOKENS if by_id else _num_tokens(self._size)
        self._ids = prompt(model, min(room, wanted))
        self._others = tuple(reversed(self._ids))

    def find_sizes(self, tiled: TiledModel) -> Steps:
        """Leave it the sizes of tiles that give the same as one of TILE rows."""
        tiled.sizes = (TILE,)
        wanted = yield from self._alone(len(self._ids))
        good = [TILE]
        for size in SIZES:
            if size == TILE or size > tiled.most_rows:
                continue
            tiled.sizes = (size,)
            steps = self._few(size) if size < TILE else self._crowd(size)
            found = yield from steps
            if all(is_same(rows, wanted[: len(rows)]) for rows in found):
                good.append(size)
        tiled.sizes = tuple(sorted(good))

    def prove(self) -> Steps:
        """Raises load_failed, naming the first situation in which bits differ."""
        count = len(self._ids)
        wanted = yield from self._alone(count)
        some = max(1, count - _ONE_BY_ONE)
        shared = max(1, count - count % self._size - 3, count // 2)
        situations = {
            "when computed again": self._alone(count, pages=self._second()),
            "in chunks of 7 ids": self._alone(count, chunk=7),
            "in chunks of 16 ids": self._alone(count, chunk=16),
            "one id at a time": self._one_by_one(some),
            "beside another prompt": self._beside(chunk=5, other_chunk=11),
            "beside another that decodes": self._beside(chunk=count, other_chunk=1),
        }
        if self._computing.spec.shares:
            situations["from a shared prefix"] = self._from_prefix(shared)
        for words, steps in situations.items():
            found = yield from steps
            if not is_same(found, wanted[count - len(found) :]):
                raise refuse(
                    f"numerics = invariant doesn't hold for it: {words} its logits are "
                    'others than alone. Serve it with options.numerics = "fast"'
                )

    def _few(self, size: int) -> Generator[None, None, list[torch.Tensor]]:
        count = min(len(self._ids), max(_FEW_ROWS, size))
        return [(yield from self._alone(count))]

    def _crowd(self, size: int) -> Generator[None, None, list[torch.Tensor]]:
        """Logits of as many equal prompts as fill a tile, and of some more rows."""
        count = len(self._ids)
        pages = -(-count // self._size)
        most = self._computing.spec.max_pages // pages
        subjects = [
            self._start(self._ids, range(number * pages, (number + 1) * pages))
            for number in range(min(most, 1 + -(-size // count)))
        ]
        try:
            rows = yield from self._forward(*[(one, count) for one in subjects])
            return rows
        finally:
            for subject in subjects:
                self._end(subject)

    def _alone(
        self, count: int, *, chunk: int = 1 << 20, pages: Listing[int] | None = None
    ) -> Found:
        """Logits [count, V] of the first ids."""
        subject = self._start(self._ids[:count], pages or self._first())
        try:
            rows = []
            while subject.num_computed < count:
                num_ids = min(chunk, count - subject.num_computed)
                rows.append((yield from self._step((subject, num_ids))))
            return torch.cat(rows)
        finally:
            self._end(subject)

    def _one_by_one(self, begin: int) -> Found:
        """A prompt up to `begin`, then as if the rest had been decoded."""
        subject = self._start(self._ids, self._second())
        try:
            rows = [(yield from self._step((subject, begin)))]
            while subject.num_computed < len(self._ids):
                rows.append((yield from self._step((subject, 1))))
            return torch.cat(rows)
        finally:
            self._end(subject)

    def _beside(self, *, chunk: int, other_chunk: int) -> Found:
        """Another prompt is in every forward, before this one."""
        subject = self._start(self._ids, self._first())
        other = self._start(self._others, self._second())
        try:
            rows = []
            while subject.num_computed < len(self._ids):
                works = [(subject, min(chunk, _left(subject)))]
                if _left(other):
                    works.insert(0, (other, min(other_chunk, _left(other))))
                rows.append((yield from self._step(*works)))
            return torch.cat(rows)
        finally:
            self._end(subject)
            self._end(other)

    def _from_prefix(self, count: int) -> Found:
        """Behind so many ids that another sequence has computed."""
        source = self._start(self._ids[:count], self._first())
        subject = self._start(self._ids, self._second())
        try:
            yield from self._step((source, count))
            with torch.inference_mode():
                self._share(source, subject, count)
            return (yield from self._step((subject, len(self._ids) - count)))
        finally:
            self._end(source)
            self._end(subject)

    def _share(self, source: Sequence, subject: Sequence, count: int) -> None:
        for at, page in enumerate(source.pages[: -(-count // self._size)]):
            held = min(self._size, count - at * self._size)
            self._computing.copy_page(page, subject.pages[at], held)
        if self._computing.spec.state_bytes:
            state = self._computing.save_state(source)
            self._computing.load_state(subject, state)
        subject.num_computed = count

    def _step(self, *planned: tuple[Sequence, int]) -> Found:
        """One forward. The rows of the last one of the works."""
        return (yield from self._forward(*planned))[-1]

    def _forward(
        self, *planned: tuple[Sequence, int]
    ) -> Generator[None, None, list[torch.Tensor]]:
        if time.monotonic() > self._ends_s:
            raise refuse(
                "the self-test of numerics = invariant took longer than "
                f"{self._time_limit_s:.0f} s"
            )
        with torch.inference_mode():
            works = [Work(sequence, count) for sequence, count in planned]
            logits = self._computing.compute(works)
            rows = [logits.of(index).cpu() for index in range(len(works))]
        for sequence, count in planned:
            sequence.num_computed += count
        yield
        return rows

    def _start(self, ids: tuple[int, ...], pages: Listing[int]) -> Sequence:
        count = -(-len(ids) // self._size)
        return sequence_of(self._model, list(pages[:count]), ids, scored=True)

    def _end(self, sequence: Sequence) -> None:
        self._computing.release(sequence)
        if self._computing.spec.shares:
            self._computing.clear_pages(sequence.pages)

    def _first(self) -> list[int]:
        return list(range(self._half))

    def _second(self) -> list[int]:
        """Other pages, none of which follows the one before it."""
        return list(range(2 * self._half - 1, self._half - 1, -1))


def prompt(model: Resident, count: int) -> tuple[int, ...]:
    """Ids that repeat, that end texts, from both ends of the vocabulary, and any."""
    last = model.vocab_size - 1
    some = [(7919 * number + 13) % model.vocab_size for number in range(12)]
    special = [0, *sorted(model.eos_ids)[:2], last, 1 % model.vocab_size]
    ids = [3, 4, 5, 3, 4, 5, 3, 4, 5, *special, *some, *[9] * 9, 2, 1, 2, 1, 2]
    return tuple(islice(cycle([min(number, last) for number in ids]), count))


def is_same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Bit for bit."""
    raw, expected = (t.contiguous().view(torch.uint8) for t in (found, wanted))
    return torch.equal(raw, expected)


def _left(sequence: Sequence) -> int:
    return len(sequence.ids) - sequence.num_computed


def _num_tokens(page_tokens: int) -> int:
    """More than a page, where pages are short."""
    if page_tokens > _LONGEST_PAGE:
        return _TOKENS
    return max(_TOKENS, page_tokens + _BEHIND_A_PAGE)
