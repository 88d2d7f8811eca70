"""What a gateway worker counts, and the life of one request in these figures.

Gateway worker. With PROMETHEUS_MULTIPROC_DIR in the environment, set by the supervisor,
the figures lie in files that the metrics process adds up over all workers.

    account = accounts.open(endpoint) ─▶ first_token() ─▶ end(outcome, usage)

Invariant: each request ends in exactly one outcome, however it ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Literal

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from cortexd.frames import Usage

Outcome = Literal["ok", "client_error", "refused", "failed", "broken", "client_gone"]
OUTCOMES: dict[Outcome, str] = {
    "ok": "a whole answer",
    "client_error": "a 4xx: the request was wrong",
    "refused": "429 or 503: come back later",
    "failed": "another 5xx",
    "broken": "the stream ended with an error event",
    "client_gone": "the client left first",
}
NO_MODEL = "unknown"
"""Label of requests for names that we don't know: clients must not make labels."""

_FAST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)
_SLOW_S = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Series:
    """The figures of one worker."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.requests = Counter(
            "cortexd_requests",
            "Requests by model, endpoint and outcome; each request is in exactly one",
            ["model", "endpoint", "outcome"],
            registry=registry,
        )
        self.tokens = Counter(
            "cortexd_tokens",
            "Tokens by model and kind: prompt, completion, cached",
            ["model", "kind"],
            registry=registry,
        )
        self.first_token_s = Histogram(
            "cortexd_time_to_first_token_seconds",
            "From a request's arrival to its first token, of streams",
            ["model"],
            buckets=(*_FAST_S, *_SLOW_S),
            registry=registry,
        )
        self.request_s = Histogram(
            "cortexd_request_seconds",
            "From a request's arrival to the end of its answer",
            ["model", "endpoint", "outcome"],
            buckets=(*_FAST_S, *_SLOW_S),
            registry=registry,
        )
        self.setbacks = Counter(
            "cortexd_setbacks",
            "Attempts that a node did not answer, or was too busy for",
            ["node"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "cortexd_requests_in_flight",
            "Requests that have no end yet",
            multiprocess_mode="livesum",
            registry=registry,
        )


class Account:
    """One request."""

    def __init__(
        self,
        series: Series,
        endpoint: str,
        clock: Callable[[], float],
        on_close: Callable[[], None],
    ) -> None:
        self.model = NO_MODEL
        self._endpoint = endpoint
        self.outcome: Outcome | None = None
        self._series = series
        self._clock = clock
        self._began_s = clock()
        self._has_token = False
        self._on_close = on_close
        series.in_flight.inc()

    def first_token(self) -> None:
        if not self._has_token:
            self._has_token = True
            waited_s = self._clock() - self._began_s
            self._series.first_token_s.labels(self.model).observe(waited_s)

    def end(self, outcome: Outcome, usage: Usage | None = None) -> None:
        """The first call counts."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        series, model = self._series, self.model
        series.in_flight.dec()
        labels = (model, self._endpoint, outcome)
        series.requests.labels(*labels).inc()
        series.request_s.labels(*labels).observe(self._clock() - self._began_s)
        if usage is not None:
            series.tokens.labels(model, "prompt").inc(usage.prompt_tokens)
            series.tokens.labels(model, "completion").inc(usage.completion_tokens)
            series.tokens.labels(model, "cached").inc(usage.cached_tokens)

    def end_with(self, status: int, usage: Usage | None = None) -> None:
        """For an answer with a status."""
        self.end(outcome_of(status), usage)

    def close(self) -> None:
        """When the exchange is over; what nobody ended is a bug of ours."""
        self.end("failed")
        self._on_close()


class Accounts:
    """`num_open` exchanges are not over."""

    def __init__(
        self, series: Series, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.num_open = 0
        self._series = series
        self._clock = clock

    def open(self, endpoint: str) -> Account:
        """`endpoint` as metrics name it."""
        self.num_open += 1
        return Account(self._series, endpoint, self._clock, self._closed)

    def _closed(self) -> None:
        self.num_open -= 1

    def set_back(self, node: str) -> None:
        """An attempt on `node` came to nothing."""
        self._series.setbacks.labels(node).inc()


def outcome_of(status: int) -> Outcome:
    if status in (429, 503):
        return "refused"
    if status < 400:
        return "ok"
    return "client_error" if status < 500 else "failed"


def mark_dead(pid: int) -> None:
    """In the arbiter: forget the gauges of a worker that is gone."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid)  # type: ignore[no-untyped-call]
