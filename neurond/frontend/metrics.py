"""Counters of a front-end worker, in prometheus-client's multiprocess folder.

Front-end worker; `mark_dead` runs in the arbiter. The folder is the supervisor's
(PROMETHEUS_MULTIPROC_DIR), which wipes it at the service's start; the metrics process
reads it.

Invariant: labels are bounded: models that the node knows, and outcomes of the table.
"""

from __future__ import annotations

import os
from typing import Protocol

from prometheus_client import Counter, Gauge, Histogram

from ipc.errors import ServiceError
from neurond.serving.generation import Usage

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

_REQUESTS = Counter(
    "neurond_requests_total", "Requests by outcome", ["model", "outcome"]
)
_TOKENS = Counter("neurond_tokens_total", "Tokens by kind", ["model", "kind"])
_FIRST_TEXT = Histogram(
    "neurond_first_text_seconds",
    "Arrival to the first text of an answer",
    ["model"],
    buckets=_SECONDS,
)
_DURATION = Histogram(
    "neurond_request_seconds",
    "Arrival to the end of an answer",
    ["model"],
    buckets=_SECONDS,
)
_HYGIENE = Counter(
    "neurond_hygiene_total", "Rules applied to messages", ["model", "rule", "action"]
)
_RESUMED = Counter(
    "neurond_requests_resumed_total",
    "Requests submitted again after the death of their device",
    ["model"],
)
_DIVERGED = Counter(
    "neurond_prompts_diverged_total",
    "Prompts that changed what their conversation had sent before",
    ["model", "role"],
)
_IN_FLIGHT = Gauge(
    "neurond_requests_in_flight", "Requests now", multiprocess_mode="livesum"
)


class Answer(Protocol):
    """A request's work, of whatever endpoint."""

    @property
    def usage(self) -> Usage: ...
    @property
    def error(self) -> ServiceError | None: ...
    @property
    def ended(self) -> bool: ...


class RequestMeter:
    """One request, from its arrival; `model` is one that the node knows."""

    def __init__(self, model: str, arrived_s: float) -> None:
        self._model = model
        self._arrived_s = arrived_s
        self._shown = False
        _IN_FLIGHT.inc()

    def text(self, now_s: float) -> None:
        """The first text went out."""
        if not self._shown:
            self._shown = True
            _FIRST_TEXT.labels(self._model).observe(now_s - self._arrived_s)

    def end(self, answer: Answer, now_s: float) -> None:
        _IN_FLIGHT.dec()
        usage = answer.usage
        _TOKENS.labels(self._model, "prompt").inc(usage.prompt)
        _TOKENS.labels(self._model, "cached").inc(usage.cached)
        _TOKENS.labels(self._model, "completion").inc(usage.completion)
        _DURATION.labels(self._model).observe(now_s - self._arrived_s)
        _REQUESTS.labels(self._model, _outcome(answer)).inc()


def refused(code: str) -> None:
    """A request that never reached a device; its model may be any text."""
    _REQUESTS.labels("", code).inc()


def resumed(model: str) -> None:
    _RESUMED.labels(model).inc()


def cleaned(model: str, rule: str, action: str) -> None:
    _HYGIENE.labels(model, rule, action).inc()


def diverged(model: str, role: str) -> None:
    _DIVERGED.labels(model, role).inc()


def mark_dead(pid: int) -> None:
    """Forget the gauges of a worker that is gone."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _outcome(answer: Answer) -> str:
    if answer.error is not None:
        return answer.error.code
    return "completed" if answer.ended else "cancelled"
