"""The device's sequences: who waits, who runs, what each step gave.

Device process, torch-free; the same for every backend. One step is one forward. Between
steps nothing of a sequence is in flight, so a cancel or an unload takes effect at once.

    submit ─▶ waiting ─▶ running ─▶ Finished | Failed | cancelled
                 ▲ (max_queue) │ (max_running, pages)
                 └─ preempted ─┘

Invariants: every accepted sequence ends in exactly one terminal message unless it was
cancelled; its pages and what the backend keeps for it are given back in the same call
that ends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Listing

from ipc.errors import ServiceError, error_for
from ipc.journal import Journal
from ipc.messages import Failed, RingUp, Submit
from ipc.status import StatusWriter
from neurond.device.backend import Backend, Outcome, Resident, Row, Work
from neurond.device.forward import Forward
from neurond.device.gate import Gate
from neurond.device.kvcache import KvCache
from neurond.device.mishaps import Mishaps
from neurond.device.outcomes import Addressed, Outbox
from neurond.device.pace import Pace
from neurond.device.rates import Rates
from neurond.device.roster import Roster
from neurond.device.scheduler import plan
from neurond.device.seats import Ended, Seats
from neurond.device.sequence import Sequence
from neurond.device.settings import DeviceSettings
from neurond.device.showing import Showing


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
        self._clock = clock
        self.kv = kv = KvCache(backend, page, settings)
        self._forward = Forward(
            backend,
            page,
            settings,
            generation=generation,
            relieve=kv.evict_all,
            clock=clock,
        )
        self.roster = Roster()
        self._seats = Seats(
            backend, kv, self.roster, page, max_running=settings.max_running
        )
        self._pace = Pace(settings.prefill_chunk)
        self._mishaps = Mishaps(page, journal, generation=generation)
        self.models: dict[str, Resident] = {}
        self._showing = Showing(page, self.models, self.roster, kv, self._pace)
        self._publish = self._showing.publish
        parts = (backend, kv, self.roster, page, settings, self._showing, clock)
        self._gate = Gate(*parts)

    @property
    def busy(self) -> bool:
        return len(self.roster) > 0

    @property
    def is_stalled(self) -> bool:
        """All that is there waits for what the backend builds for it."""
        running, waiting = self.roster.running, self.roster.waiting
        return not running and not any(s.accepted for s in waiting)

    # -- models

    def add_model(self, model: Resident) -> None:
        taken = {other.slot for other in self.models.values()}
        model.slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        model.last_used_s = time.time()
        self.models[model.name] = model
        self.kv.add_model(model)
        self._publish(model)

    def drop_model(self, name: str) -> list[Addressed]:
        """Unload it; its sequences fail."""
        model = self.models.pop(name, None)
        if model is None:
            return []
        error = error_for("no_healthy_node", "the model is being unloaded")
        out = self._fail_all([s for s in self.roster if s.model is model], error)
        self.kv.drop_model(model)
        self._pace.forget(model)
        self._page.drop_model(model.slot)
        self._backend.unload(model)
        return out

    def rates(self, model: str) -> Rates:
        """What was measured of it so far."""
        return self._showing.rates(self.models[model])

    def window(self, model: str) -> int:
        """Tokens of one sequence, prompt and answer, that can be served here now."""
        return self.kv.window(self.models[model])

    # -- requests

    def submit(self, worker: int, submit: Submit) -> RingUp | None:
        """Accepted or Failed; None: `step` will tell."""
        self._page.add("requests_total")
        try:
            sequence = self._gate.admit(worker, submit, self.models.get(submit.model))
        except ServiceError as error:
            self._page.add("requests_failed_total")
            return Failed(submit.id, error.to_wire())
        self._publish(sequence.model)
        return self._decide(sequence)

    def _decide(self, sequence: Sequence) -> RingUp | None:
        try:
            return self._gate.decide(sequence)
        except ServiceError as error:
            return self._fail(sequence, error)[1]

    def cancel(self, worker: int, request: int) -> None:
        """No answer follows; an unknown id ended meanwhile."""
        sequence = self.roster.find(worker, request)
        if sequence is not None:
            self._page.add("requests_cancelled_total")
            self._end(sequence)

    def drop_worker(self, worker: int) -> list[int]:
        """Cancel all its requests. Returns their ids."""
        dropped = [s for s in self.roster if s.worker == worker]
        for sequence in dropped:
            self.cancel(worker, sequence.id)
        return [sequence.id for sequence in dropped]

    def fail_everything(self, error: ServiceError) -> list[Addressed]:
        return self._fail_all(self.roster, error)

    # -- the step

    def step(self) -> list[Addressed]:
        """One forward. Raises DeviceDied when the process can't go on."""
        out = self._expire()
        decided = [(s.worker, self._decide(s)) for s in self._gate.undecided()]
        news = [(worker, message) for worker, message in decided if message]
        if news:
            return out + news  # now: the first step of one may be the last of all
        out += self._end_all(self._seats.fill(self._clock()))
        model = self.roster.next_model()
        if model is None:
            return out
        works, ended = self._seats.secure(self._plan(model))
        out += self._end_all(ended)
        if works:
            out += self._compute(model, works)
        return out

    def _plan(self, model: Resident) -> list[Work]:
        num_tokens = self._pace.chunk(model, self.roster.running)
        mine = self.roster.of(model)
        return plan(
            mine,
            max_rows=self._backend.max_rows,
            num_tokens=num_tokens,
            pause_s=self._pace.pause_s(model, self.roster.running),
        )

    def _compute(self, model: Resident, works: Listing[Work]) -> list[Addressed]:
        sequences = [work.sequence for work in works]
        self.roster.rotate(sequences)
        lonely = len(self.roster.running) == 1
        outcomes = self._forward.run(works, lonely=lonely)
        self._pace.observe(works, self._forward.seconds)
        out = self._deliver(works, outcomes)
        self._publish(model)
        return out

    # -- outcomes

    def _deliver(
        self, works: Listing[Work], outcomes: Listing[Outcome]
    ) -> list[Addressed]:
        outbox = Outbox()
        self._mishaps.note(works, outcomes)
        for work, outcome in zip(works, outcomes, strict=True):
            if isinstance(outcome, ServiceError):
                outbox.end(self._fail(work.sequence, outcome, sound=False))
                continue
            reason = self._take(work, outcome, outbox)
            if reason is not None:
                outbox.end(self._finish(work.sequence, reason))
        return outbox.messages()

    def _take(self, work: Work, row: Row, outbox: Outbox) -> str | None:
        """Book what a forward gave for one work. Returns the finish reason, if any."""
        sequence, begin = work.sequence, work.sequence.num_computed
        sequence.open_ids = work.num_ids if row.paused else 0
        if row.paused:
            return None
        was_decode = sequence.decodes
        sequence.num_computed += work.num_ids
        sequence.num_proven = sequence.num_computed
        self._page.add("computed_tokens_total", work.num_ids)
        if row.prompt:
            outbox.scores(sequence, begin, row)
        if sequence.num_computed in sequence.cuts:
            self.kv.save_state(sequence)
        self.kv.publish(sequence, tail=not was_decode)
        if row.vector is not None:
            outbox.vector(sequence, row.vector)
            return "stop"
        if sequence.num_pending:
            outbox.progress(sequence)
            return None
        if row.token is None or sequence.full:
            return "length"  # only the prompt was wanted
        start = sequence.num_emitted
        reason = sequence.append(row.token)
        if sequence.num_emitted > start:
            outbox.token(sequence, start, row)
            self._page.add("emitted_tokens_total")
        return reason

    def _finish(self, sequence: Sequence, reason: str) -> Addressed:
        self._page.add("requests_finished_total")
        if sequence.num_computed:
            self.kv.save_state(sequence)
        self._end(sequence)
        return sequence.worker, sequence.finished(reason)

    def _fail(
        self, sequence: Sequence, error: ServiceError, *, sound: bool = True
    ) -> Addressed:
        self._page.add("requests_failed_total")
        self._end(sequence, sound=sound)
        return sequence.worker, Failed(sequence.id, error.to_wire())

    # -- bookkeeping

    def _expire(self) -> list[Addressed]:
        """End what is past its deadline, or was complete when it was resumed."""
        now_s = self._clock()
        late = [s for s in self.roster if 0 < s.expires_s <= now_s]
        out = self._fail_all(late, error_for("overloaded", "the deadline has passed"))
        patience_s = self._settings.queue_deadline_s
        queued = [
            s for s in self.roster.waiting if s.queued_too_long(now_s, patience_s)
        ]
        ahead = len(self.roster.waiting) - len(queued)
        busy = error_for(
            "overloaded",
            f"no seat became free in {patience_s:g} s",
            retry_after_s=self._showing.retry_after_s(ahead + 1),
        )
        out += self._fail_all(queued, busy)
        ready = [s for s in self.roster.waiting if s.accepted]
        whole = [s for s in ready if s.full and not s.wants_prompt]
        return out + [self._finish(sequence, "length") for sequence in whole]

    def _end_all(self, ended: Ended) -> list[Addressed]:
        return [
            self._finish(sequence, why)
            if isinstance(why, str)
            else self._fail(sequence, why)
            for sequence, why in ended
        ]

    def _fail_all(
        self, sequences: Iterable[Sequence], error: ServiceError
    ) -> list[Addressed]:
        return [self._fail(sequence, error) for sequence in list(sequences)]

    def _end(self, sequence: Sequence, *, sound: bool = True) -> None:
        self.roster.remove(sequence)
        if sound:
            self.kv.publish(sequence, tail=True)
        self._backend.release(sequence)
        self.kv.release(sequence, sound=sound)
        self._publish(sequence.model)
