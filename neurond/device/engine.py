"""The device's sequences: who waits, who runs, what each step gave.

Device process, torch-free; the same for every backend. One step is one forward. Between
steps nothing of a sequence is in flight, so a cancel or an unload takes effect at once.

    submit ─▶ waiting ─▶ running ─▶ Finished | Failed | cancelled
                 (max_queue)  (max_running)

Invariants: every accepted sequence ends in exactly one terminal message unless it was
cancelled; a backend's cache is released in the same call that ends the sequence.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Listing

from ipc.errors import ServiceError, error_for
from ipc.journal import Journal
from ipc.messages import (
    Accepted,
    Failed,
    Progress,
    RingUp,
    Submit,
    TokenRow,
    Tokens,
    Vector,
)
from ipc.status import StatusWriter
from neurond.device.backend import Backend, Outcome, Resident, Work
from neurond.device.forward import Forward
from neurond.device.intake import check
from neurond.device.kvcache import KvCache
from neurond.device.schedule import plan
from neurond.device.sequence import Sequence
from neurond.device.settings import DeviceSettings

Addressed = tuple[int, RingUp]
"""A message and the worker it is for."""


class Engine:
    """Owns the sequences and the resident models."""

    def __init__(  # noqa: PLR0913  the process's collaborators
        self,
        backend: Backend,
        page: StatusWriter,
        settings: DeviceSettings,
        journal: Journal,
        *,
        generation: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._page = page
        self._settings = settings
        self._journal = journal
        self._generation = generation
        self._clock = clock
        self._forward = Forward(backend, page, settings, generation=generation)
        self._kv = KvCache(backend, page, settings)
        self._waiting: deque[Sequence] = deque()
        self._running: deque[Sequence] = deque()
        self._by_id: dict[tuple[int, int], Sequence] = {}
        self.models: dict[str, Resident] = {}

    @property
    def busy(self) -> bool:
        return bool(self._by_id)

    # -- models

    def add_model(self, model: Resident) -> None:
        taken = {other.slot for other in self.models.values()}
        model.slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        model.last_used_s = time.time()
        self.models[model.name] = model
        self._kv.add_model(model)
        self._publish(model)

    def drop_model(self, name: str) -> list[Addressed]:
        """Unload it; its sequences fail."""
        model = self.models.pop(name, None)
        if model is None:
            return []
        error = error_for("no_healthy_node", "the model is being unloaded")
        out = self._fail_all([s for s in self._sequences() if s.model is model], error)
        self._kv.drop_model(model)
        self._page.drop_model(model.slot)
        self._backend.unload(model)
        return out

    # -- requests

    def submit(self, worker: int, submit: Submit) -> RingUp:
        """Accepted or Failed."""
        self._page.add("requests_total")
        try:
            sequence = self._admit(worker, submit)
        except ServiceError as error:
            self._page.add("requests_failed_total")
            return Failed(submit.id, error.to_wire())
        self._publish(sequence.model)
        position = max(0, len(self._by_id) - self._settings.max_running)
        return Accepted(submit.id, position, 0)

    def cancel(self, worker: int, request: int) -> None:
        """No answer follows; an unknown id ended meanwhile."""
        sequence = self._by_id.get((worker, request))
        if sequence is not None:
            self._page.add("requests_cancelled_total")
            self._end(sequence)

    def drop_worker(self, worker: int) -> list[int]:
        """Cancel all its requests. Returns their ids."""
        dropped = [s for s in self._sequences() if s.worker == worker]
        for sequence in dropped:
            self.cancel(worker, sequence.id)
        return [sequence.id for sequence in dropped]

    def fail_everything(self, error: ServiceError) -> list[Addressed]:
        return self._fail_all(self._sequences(), error)

    # -- the step

    def step(self) -> list[Addressed]:
        """One forward. Raises DeviceDied when the process can't go on."""
        out = self._expire()
        while self._waiting and len(self._running) < self._settings.max_running:
            if self._kv.admit(self._waiting[0]) is not None:
                break
            self._running.append(self._waiting.popleft())
        works = plan(
            self._running,
            max_rows=self._backend.max_rows,
            chunk=self._settings.prefill_chunk,
        )
        works = [w for w in works if self._kv.grow(w.sequence, w.num_ids) is None]
        if works:
            self._rotate(works)
            out += self._deliver(works, self._forward.run(works))
            self._publish(works[0].sequence.model)
        return out

    # -- outcomes

    def _deliver(
        self, works: Listing[Work], outcomes: Listing[Outcome]
    ) -> list[Addressed]:
        """One Tokens record per worker, then whatever ended."""
        rows: dict[int, list[TokenRow]] = {}
        after: list[Addressed] = []
        for work, outcome in zip(works, outcomes, strict=True):
            sequence = work.sequence
            if isinstance(outcome, ServiceError):
                self._absolve(sequence, outcome)
                after.append(self._fail(sequence, outcome))
                continue
            sequence.num_computed += work.num_ids
            if outcome.vector is not None:
                vector = Vector(sequence.id, outcome.vector)
                after.append((sequence.worker, vector))
                after.append(self._finish(sequence, "stop"))
            elif outcome.token is None:
                done, total = sequence.num_computed, len(sequence.ids)
                after.append((sequence.worker, Progress(sequence.id, done, total)))
            else:
                row, ended = self._take(sequence, outcome.token)
                rows.setdefault(sequence.worker, []).extend(row)
                after += ended
        tokens: list[Addressed] = [(w, Tokens(tuple(r))) for w, r in rows.items() if r]
        return tokens + after

    def _take(
        self, sequence: Sequence, token: int
    ) -> tuple[list[TokenRow], list[Addressed]]:
        start = sequence.num_emitted
        reason = sequence.append(token)
        row = []
        if sequence.num_emitted > start:
            row.append(TokenRow(sequence.id, start, (token,)))
            self._page.add("emitted_tokens_total")
        return row, [self._finish(sequence, reason)] if reason else []

    def _finish(self, sequence: Sequence, reason: str) -> Addressed:
        self._page.add("requests_finished_total")
        self._end(sequence)
        return sequence.worker, sequence.finished(reason)

    def _fail(self, sequence: Sequence, error: ServiceError) -> Addressed:
        self._page.add("requests_failed_total")
        self._end(sequence)
        return sequence.worker, Failed(sequence.id, error.to_wire())

    def _absolve(self, sequence: Sequence, error: ServiceError) -> None:
        """A forward failed this request alone; operators search for these words."""
        if error.code == "nan_logits":
            self._page.add("nan_total")
        self._journal.warning(
            "model NOT marked poisoned",
            event="request.failed",
            model=sequence.model.name,
            request=sequence.id,
            generation=self._generation,
            code=error.code,
            fault=" < ".join(error.chain) or error.message,
        )

    # -- bookkeeping

    def _admit(self, worker: int, submit: Submit) -> Sequence:
        model = self.models.get(submit.model)
        if model is None:
            raise error_for("no_healthy_node", "the model is not loaded here")
        check(submit, model)
        if (worker, submit.id) in self._by_id:
            raise error_for("invalid_request_error", "the request id is in use")
        seats = self._settings.max_running + self._settings.max_queue
        if len(self._by_id) >= seats:
            raise error_for("queue_full", "the device's queue is full")
        sequence = Sequence(worker, submit, model, self._clock())
        self._by_id[worker, submit.id] = sequence
        self._waiting.append(sequence)
        self._page.add("prompt_tokens_total", submit.num_prompt)
        return sequence

    def _expire(self) -> list[Addressed]:
        """End what is past its deadline, or was complete when it was resumed."""
        now_s = self._clock()
        late = [s for s in self._sequences() if 0 < s.expires_s <= now_s]
        out = self._fail_all(late, error_for("overloaded", "the deadline has passed"))
        whole = [s for s in self._waiting if s.full]
        return out + [self._finish(sequence, "length") for sequence in whole]

    def _fail_all(
        self, sequences: Iterable[Sequence], error: ServiceError
    ) -> list[Addressed]:
        return [self._fail(sequence, error) for sequence in list(sequences)]

    def _end(self, sequence: Sequence) -> None:
        del self._by_id[sequence.worker, sequence.id]
        queue = self._running if sequence in self._running else self._waiting
        queue.remove(sequence)
        self._backend.release(sequence)
        self._kv.release(sequence)
        self._publish(sequence.model)

    def _rotate(self, works: Listing[Work]) -> None:
        for work in works:
            self._running.remove(work.sequence)
            self._running.append(work.sequence)

    def _sequences(self) -> list[Sequence]:
        return [*self._running, *self._waiting]

    def _publish(self, model: Resident) -> None:
        """Write the page's row of the model and the gauges."""
        if model.name in self.models:
            model.last_used_s = time.time()
            running = sum(s.model is model for s in self._running)
            queued = sum(s.model is model for s in self._waiting)
            row = (model.slot, model.name, running, queued, model.last_used_s)
            self._page.model(*row)
        self._page.set("running", len(self._running))
        self._page.set("waiting", len(self._waiting))
