"""What the status page shows of requests and models, and when to ask again.

Device process, torch-free. Reads the engine's parts, writes the page, decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from ipc.status import ModelFigures, StatusWriter
from neurond.device.backend import Resident
from neurond.device.kvcache import KvCache
from neurond.device.pace import Pace
from neurond.device.rates import Rates
from neurond.device.roster import Roster
from neurond.device.sequence import Sequence
from neurond.retrying import retry_after_s


class Showing:
    """`models` are those that are resident, by name; the engine's own."""

    def __init__(
        self,
        page: StatusWriter,
        models: Mapping[str, Resident],
        roster: Roster,
        kv: KvCache,
        pace: Pace,
    ) -> None:
        self._page = page
        self._models = models
        self._roster = roster
        self._kv = kv
        self._pace = pace

    def rates(self, model: Resident) -> Rates:
        """What was measured of it; before any request what its load measured."""
        known = self._pace.rates(model)
        prefill = known.prefill_tokens_s or model.prefill_tokens_s
        return Rates(prefill, known.decode_steps_s)

    def retry_after_s(self, num_wanted: int) -> float | None:
        """When so many of those that have a seat will have ended, as far as known."""
        return retry_after_s(map(self._left_s, self._roster.running), num_wanted)

    def _left_s(self, sequence: Sequence) -> float:
        """At the latest: it may end before it has all that it asked for."""
        rates, num_ids = self.rates(sequence.model), len(sequence.ids)
        decode = sequence.most_tokens - num_ids
        prefill = num_ids - sequence.num_computed
        seconds = decode / rates.decode_steps_s if rates.decode_steps_s else 0.0
        if rates.prefill_tokens_s:
            seconds += prefill / rates.prefill_tokens_s
        return seconds

    def publish(self, model: Resident) -> None:
        """Write the page's row of the model and the gauges."""
        roster = self._roster
        if model.name in self._models:
            model.last_used_s = time.time()
            running = sum(s.model is model for s in roster.running)
            queued = sum(s.model is model for s in roster.waiting)
            figures = self._figures(model)
            row = (model.slot, model.name, running, queued, model.last_used_s, figures)
            self._page.model(*row)
        self._kv.show()
        self._page.set("running", len(roster.running))
        self._page.set("waiting", len(roster.waiting))

    def _figures(self, model: Resident) -> ModelFigures:
        rates, account = self.rates(model), self._kv.budget.accounts[model.name]
        return ModelFigures(
            rates.prefill_tokens_s,
            rates.decode_steps_s,
            account.used_bytes,
            account.cached_bytes,
        )
