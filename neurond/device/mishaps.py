"""What went wrong for single rows: counted, told to the journal, and when it is more.

Device process, torch-free. A row that fails says nothing about its model. NaN in
several rows, or for one request after the other, does: then the weights are bad, and an
operator should load them again.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing

from ipc.errors import ServiceError
from ipc.journal import Journal
from ipc.status import StatusWriter
from neurond.device.backend import Outcome, Work
from neurond.device.sequence import Sequence

_COUNTERS = {"nan_logits": "nan_total", "grammar_dead_end": "grammar_errors_total"}


class Mishaps:
    def __init__(
        self, page: StatusWriter, journal: Journal, *, generation: int
    ) -> None:
        self._page = page
        self._journal = journal
        self._generation = generation
        self._nan_watch = NanWatch()

    def note(self, works: Listing[Work], outcomes: Listing[Outcome]) -> None:
        """After a forward, before its rows are booked."""
        if self._nan_watch.is_model(works, outcomes):
            self._journal.error(
                "model computes NaN",
                event="model.nan",
                model=works[0].sequence.model.name,
                generation=self._generation,
            )
        for work, outcome in zip(works, outcomes, strict=True):
            if isinstance(outcome, ServiceError):
                self._absolve(work.sequence, outcome)

    def _absolve(self, sequence: Sequence, error: ServiceError) -> None:
        """A forward failed this request alone; operators search for these words."""
        if error.code in _COUNTERS:
            self._page.add(_COUNTERS[error.code])
        self._journal.warning(
            "model NOT marked poisoned",
            event="request.failed",
            model=sequence.model.name,
            request=sequence.id,
            generation=self._generation,
            code=error.code,
            fault=" < ".join(error.chain) or error.message,
        )


class NanWatch:
    """Whether NaN is the model's and not a request's."""

    def __init__(self) -> None:
        self._fresh_in_a_row = 0

    def is_model(self, works: Listing[Work], outcomes: Listing[Outcome]) -> bool:
        """After a forward, before it is booked: two rows at once, or two requests in a
        row of which nothing had been drawn before."""
        pairs = zip(works, outcomes, strict=True)
        rows = [(work.sequence, _is_nan(outcome)) for work, outcome in pairs]
        nan = [sequence for sequence, failed in rows if failed]
        drawn = [work for work in works if work.draws and work.sequence.is_fresh]
        if len(drawn) > len(nan):
            self._fresh_in_a_row = 0
        self._fresh_in_a_row += sum(sequence.is_fresh for sequence in nan)
        return bool(nan) and (len(nan) > 1 or self._fresh_in_a_row > 1)


def _is_nan(outcome: Outcome) -> bool:
    return isinstance(outcome, ServiceError) and outcome.code == "nan_logits"
