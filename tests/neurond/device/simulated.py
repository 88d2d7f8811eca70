"""An engine in the test's own process, on simulated time and simulated pages.

The backend is the fake, with a memory for what a KV cache would hold: each slot of a
page remembers which beginning of which text was computed into it, and every forward
checks that the slots it reads hold what its sequence needs. A page written by two, or
reused for a text that it doesn't belong to, fails the test.
"""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Sequence as Listing
from pathlib import Path
from typing import Any

from ipc.journal import Journal
from ipc.messages import (
    Accepted,
    Failed,
    Finished,
    Load,
    PromptScores,
    RingUp,
    Tokens,
    Vector,
)
from ipc.status import StatusReader, StatusWriter, create_page
from neurond.device import fakemodel, standins
from neurond.device.backend import Outcome, Resident, Row, Work
from neurond.device.engine import Engine
from neurond.device.fake import FakeBackend
from neurond.device.sequence import Sequence
from neurond.device.settings import DeviceSettings
from tests.neurond.device.rig import make_submit


@functools.cache
def folder() -> Path:
    return fakemodel.build(Path(tempfile.mkdtemp()) / "fake")


class PagedFake(FakeBackend):
    def __init__(self, simulation: Simulation) -> None:
        super().__init__(
            simulation.memory_bytes,
            sleep=simulation.sleep,
            clock=lambda: simulation.now_s,
        )
        self.slots: dict[tuple[str, int], dict[int, int]] = {}
        self.copies: list[tuple[int, int, int]] = []
        self.steps: list[list[tuple[int, int]]] = []
        self.num_paused = 0
        self.num_ooms_in_stints = 0

    def clear_pages(self, model: Resident, pages: Listing[int]) -> None:
        for page in pages:
            self.slots[model.name, page] = {}

    def copy_page(
        self, model: Resident, source: int, target: int, num_tokens: int
    ) -> None:
        held = self.slots[model.name, source]
        self.slots[model.name, target] = {n: held[n] for n in range(num_tokens)}
        self.copies.append((source, target, num_tokens))

    def forward(self, works: Listing[Work]) -> list[Outcome]:
        self.steps.append([(work.sequence.id, work.num_ids) for work in works])
        for work in works:
            self._check(work.sequence)
        try:
            outcomes = super().forward(works)
        except standins.OutOfMemoryError:
            self.num_ooms_in_stints += len(works) > 1 and works[-1].pause_s > 0
            raise
        for work, outcome in zip(works, outcomes, strict=True):
            paused = isinstance(outcome, Row) and outcome.paused
            self.num_paused += paused
            self._write(work, whole=not paused)
        return outcomes

    def _check(self, sequence: Sequence) -> None:
        if sequence.model.cache.shares:
            beginnings = _beginnings(sequence)
            for position in range(sequence.num_computed):
                held = self._slot(sequence, position)
                assert held == beginnings[position], (sequence.id, position)

    def _write(self, work: Work, *, whole: bool) -> None:
        """What a paused chunk has written is of no use to anybody yet."""
        sequence = work.sequence
        size = sequence.model.cache.page_tokens
        beginnings = _beginnings(sequence)
        begin = sequence.num_computed
        for position in range(begin, begin + work.num_ids):
            page = sequence.pages[position // size]
            slots = self.slots.setdefault((sequence.model.name, page), {})
            slots[position % size] = beginnings[position] if whole else 0

    def _slot(self, sequence: Sequence, position: int) -> int | None:
        size = sequence.model.cache.page_tokens
        page = sequence.pages[position // size]
        return self.slots[sequence.model.name, page].get(position % size)


def _beginnings(sequence: Sequence) -> list[int]:
    """For each position, a number that stands for all ids up to it."""
    number = hash(sequence.submit.cache_salt)
    return [number := hash((number, token)) for token in sequence.ids]


class Simulation:
    """`options` are the model's; `settings` the device's."""

    def __init__(self, settings: dict[str, Any] | None = None, **options: Any) -> None:
        self.now_s = 100.0
        self.memory_bytes = options.pop("device_bytes", 0)
        self.backend = PagedFake(self)
        page_fd = create_page()
        self.page = StatusReader(page_fd)
        self.written = io.StringIO()
        self.engine = Engine(
            self.backend,
            StatusWriter(page_fd),
            DeviceSettings.of(settings or {}),
            Journal("neurond", stream=self.written),
            generation=1,
            clock=lambda: self.now_s,
        )
        self.messages: list[RingUp] = []
        self.load("m", **options)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def load(self, name: str, **options: Any) -> None:
        steps = self.backend.load(
            Load(name, str(folder()), "auto", "none", 0, {"tokens": "count", **options})
        )
        try:
            while True:
                next(steps)
        except StopIteration as done:
            self.engine.add_model(done.value)

    def ask(self, request: int, ids: Listing[int], **more: Any) -> RingUp | None:
        """Accepted, Failed or None: not yet; eight tokens are wanted unless told
        otherwise."""
        fields = {"max_tokens": 8, **more}
        answer = self.engine.submit(1, make_submit(request, tuple(ids), **fields))
        self.messages += [answer] if answer else []
        return answer

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.now_s += 0.002 if self.engine.is_stalled else 0
            self.messages += [message for _, message in self.engine.step()]

    def drain(self, *, most: int = 10_000) -> None:
        for _ in range(most):
            if not self.engine.busy:
                return
            self.step()
        raise AssertionError("requests never end")

    def answer(self, request: int, ids: Listing[int], **more: Any) -> list[int]:
        """Emitted ids of a request that has the device to itself."""
        self.ask(request, ids, **more)
        self.drain()
        assert isinstance(self.ended(request), Finished), self.ended(request)
        return self.ids(request)

    # -- what came back

    def ids(self, request: int) -> list[int]:
        emitted: list[int] = []
        for row in self.rows(request):
            assert row.start == len(emitted)
            emitted += row.ids
        return emitted

    def rows(self, request: int) -> list[Any]:
        records = [m for m in self.messages if isinstance(m, Tokens)]
        return [row for m in records for row in m.rows if row.id == request]

    def ended(self, request: int) -> Finished | Failed | None:
        ends = [
            message
            for message in self.messages
            if isinstance(message, Finished | Failed) and message.id == request
        ]
        assert len(ends) <= 1, ends
        return ends[0] if ends else None

    def cached(self, request: int) -> int:
        end = self.ended(request)
        assert isinstance(end, Finished), end
        return end.num_cached

    def code(self, request: int) -> str:
        end = self.ended(request)
        assert isinstance(end, Failed), end
        return str(end.error[0])

    def accepted(self, request: int) -> Accepted:
        found = [m for m in self.messages if isinstance(m, Accepted)]
        return next(m for m in found if m.id == request)

    def scores(self, request: int) -> list[PromptScores]:
        found = [m for m in self.messages if isinstance(m, PromptScores)]
        return [m for m in found if m.id == request]

    def vectors(self, request: int) -> list[Vector]:
        found = [m for m in self.messages if isinstance(m, Vector)]
        return [m for m in found if m.id == request]

    # -- what it holds

    def gauge(self, name: str) -> int:
        return self.page.read().gauges[name]

    def counter(self, name: str) -> int:
        return self.page.read().counters[name]

    def computed(self, request: int) -> int:
        """Tokens computed for it."""
        works = [work for step in self.backend.steps for work in step]
        return sum(count for number, count in works if number == request)

    def check_nothing_is_held(self) -> None:
        """No request is there: every page is free or the store's alone."""
        assert not self.engine.busy
        for account in self.engine.kv.budget.accounts.values():
            assert account.used_bytes == 0
            assert account.pages.num_used == account.pages.num_idle
            assert account.pages.num_idle == account.store.num_nodes
        self.engine.kv.evict_all()
        for account in self.engine.kv.budget.accounts.values():
            assert account.pages.num_free == account.pages.num_pages
            assert (account.store.num_nodes, account.store.num_states) == (0, 0)
