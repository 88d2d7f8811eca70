"""A device's counters over all its lives.

Supervisor. A status page starts at zero with each process; what the dead had counted is
folded in here, so that totals never go back (D17: files of dead pids would grow for
ever).
"""

from __future__ import annotations

from typing import Any

from ipc.status import BOUNDS_S, COUNTERS, SERIES, PageView


class Odometer:
    def __init__(self) -> None:
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._sums_s = dict.fromkeys(SERIES, 0.0)
        self._counts = {name: [0] * (len(BOUNDS_S) + 1) for name in SERIES}

    def fold(self, last: PageView) -> None:
        """Keep what a life that ended had counted."""
        self._counters = self.counters(last)
        for name, series in self.series(last).items():
            self._sums_s[name] = series["sum"]
            self._counts[name] = series["counts"]

    def counters(self, now: PageView | None) -> dict[str, int]:
        if now is None:
            return dict(self._counters)
        return {name: n + now.counters[name] for name, n in self._counters.items()}

    def series(self, now: PageView | None) -> dict[str, dict[str, Any]]:
        """{name: {bounds, counts, sum}}, seconds."""
        return {name: self._one(name, now) for name in SERIES}

    def _one(self, name: str, now: PageView | None) -> dict[str, Any]:
        counts, sum_s = self._counts[name], self._sums_s[name]
        if now is not None:
            live = now.series[name]
            counts = [a + b for a, b in zip(counts, live.counts, strict=True)]
            sum_s += live.sum_s
        return {"bounds": list(BOUNDS_S), "counts": list(counts), "sum": sum_s}
