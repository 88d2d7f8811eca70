"""Who comes in: a request is checked, what it needs is built, then it is accepted.

Device process, torch-free. Building may take a while (a grammar is compiled) and is
nobody else's business: the sequence stands in the queue and others pass it.

    admit ─▶ undecided ─▶ Accepted | ServiceError

Invariant: `accepted` is what its worker was told; who isn't gets no seat and no end but
an error.
"""

from __future__ import annotations

from collections.abc import Callable

from ipc.errors import error_for
from ipc.messages import Accepted, Submit
from ipc.status import StatusWriter
from neurond.device.backend import Backend, Resident
from neurond.device.intake import check
from neurond.device.kvcache import KvCache
from neurond.device.roster import Roster
from neurond.device.sequence import Sequence
from neurond.device.settings import DeviceSettings
from neurond.device.showing import Showing


class Gate:
    def __init__(  # noqa: PLR0913  the engine's collaborators
        self,
        backend: Backend,
        kv: KvCache,
        roster: Roster,
        page: StatusWriter,
        settings: DeviceSettings,
        showing: Showing,
        clock: Callable[[], float],
    ) -> None:
        self._backend = backend
        self._kv = kv
        self._roster = roster
        self._page = page
        self._settings = settings
        self._showing = showing
        self._clock = clock

    def admit(self, worker: int, submit: Submit, model: Resident | None) -> Sequence:
        """Put it in the queue, and begin what it needs. Raises ServiceError."""
        if model is None:
            raise error_for("no_healthy_node", "the model is not loaded here")
        window = self._kv.window(model)
        check(submit, model, window)
        if self._roster.find(worker, submit.id) is not None:
            raise error_for("invalid_request_error", "the request id is in use")
        seats = self._settings.max_running + self._settings.max_queue
        if len(self._roster) >= seats and submit.attempt == 0:
            after_s = self._showing.retry_after_s(1)
            words = "the device's queue is full"
            raise error_for("queue_full", words, retry_after_s=after_s)
        sequence = Sequence(worker, submit, model, self._clock(), window=window)
        self._backend.prepare(sequence)
        self._roster.add(sequence)
        return sequence

    def decide(self, sequence: Sequence) -> Accepted | None:
        """None: not yet. Raises ServiceError."""
        if not self._backend.is_ready(sequence):
            return None
        sequence.accepted = True
        num_prompt = sequence.submit.num_prompt
        self._page.add("prompt_tokens_total", num_prompt)
        position = max(0, len(self._roster) - self._settings.max_running)
        cached = min(self._kv.lookup(sequence), num_prompt)
        return Accepted(sequence.id, position, cached)

    def undecided(self) -> list[Sequence]:
        """In order of arrival."""
        return [s for s in self._roster.waiting if not s.accepted]
