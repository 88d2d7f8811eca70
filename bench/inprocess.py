"""The device's engine by itself: no rings, no sockets, no supervisor, no text.

Used by programs of this folder in a process of their own. As a program it loads a model
folder, prints a line, then answers each line {"prompts": [[ids]], "tokens": N} of stdin
with {"seconds", "tokens"}. Page, journal and loads are the real ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipc.journal import Journal
from ipc.messages import (
    Failed,
    Load,
    Loaded,
    LoadFailed,
    RingUp,
    Sampling,
    Submit,
    Tokens,
)
from ipc.status import StatusWriter, create_page
from neurond.device.engine import Engine
from neurond.device.loads import Loads
from neurond.device.runner import TorchBackend
from neurond.device.settings import DeviceSettings

_WORKER = 1
_LOAD_DEADLINE_S = 600.0
Ids = tuple[int, ...]


class EngineFailed(Exception):
    """A load or a request that failed, with what was said of it."""


@dataclass(slots=True)
class Run:
    """What one call of `run` gave: when each token came, by request; when each step
    ended, and of how many requests it had tokens."""

    begun_s: float
    token_s: dict[int, list[float]] = field(default_factory=dict)
    steps: list[tuple[float, int]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_s.values()))

    @property
    def seconds(self) -> float:
        return max(times[-1] for times in self.token_s.values()) - self.begun_s


class InProcess:
    """An engine on the backend of `kind`; `settings` are those of a device."""

    def __init__(self, kind: str, **settings: Any) -> None:
        known = DeviceSettings.of(settings)
        self.backend = TorchBackend(kind, known)
        page = StatusWriter(create_page())
        journal = Journal("bench")
        self.engine = Engine(self.backend, page, known, journal, generation=1)
        self._loads = Loads(
            self.backend,
            page,
            generation=1,
            deadline_s=_LOAD_DEADLINE_S,
            on_loaded=self.engine.add_model,
            journal=journal,
        )
        self._last = 0
        self.backend.open()

    def load(self, folder: Path, model: str = "m", **more: Any) -> Loaded:
        """Alone. Raises EngineFailed."""
        self.begin_load(folder, model, **more)
        while True:
            if (loaded := self.advance()) is not None:
                return loaded

    def begin_load(self, folder: Path, model: str, **more: Any) -> None:
        told = {"dtype": "auto", "quant": "auto", "context": 0, "options": {}, **more}
        self._loads.add(Load(model, str(folder), **told))

    def advance(self) -> Loaded | None:
        """One slice of the load under way; what came of it, at its end."""
        for report in self._loads.advance():
            if isinstance(report, LoadFailed):
                raise EngineFailed(str(report.error))
            if isinstance(report, Loaded):
                return report
        return None

    def submit(self, ids: Ids, num_tokens: int, model: str = "m", **more: Any) -> int:
        """Greedy, exactly `num_tokens`. Returns the request's number."""
        self._last += 1
        fields = {**_DEFAULTS, **more}
        submit = Submit(
            id=self._last,
            model=model,
            ids=ids,
            num_prompt=len(ids),
            max_tokens=num_tokens,
            **fields,
        )
        answer = self.engine.submit(_WORKER, submit)
        if isinstance(answer, Failed):
            raise EngineFailed(str(answer.error))
        return self._last

    def cancel(self, request: int) -> None:
        self.engine.cancel(_WORKER, request)

    def step(self, run: Run) -> None:
        """One forward; its tokens are booked."""
        messages: list[tuple[int, RingUp]] = self.engine.step()
        now_s = time.perf_counter()
        num_rows = 0
        for _, message in messages:
            if isinstance(message, Failed):
                raise EngineFailed(str(message.error))
            for row in message.rows if isinstance(message, Tokens) else ():
                run.token_s.setdefault(row.id, []).extend([now_s] * len(row.ids))
                num_rows += 1
        run.steps.append((now_s, num_rows))

    def run(self, prompts: list[Ids], num_tokens: int, model: str = "m") -> Run:
        """All at once, to their ends."""
        run = Run(time.perf_counter())
        for ids in prompts:
            self.submit(ids, num_tokens, model)
        self.finish(run)
        return run

    def finish(self, run: Run) -> None:
        while self.engine.busy:
            self.step(run)


_DEFAULTS: dict[str, Any] = {
    "attempt": 0,
    "choice": 0,
    "seed": 1,
    "sampling": Sampling(temperature=0.0, ignore_eos=True),
    "stop_ids": (),
    "grammar": "",
    "principal": "",
    "priority": 100,
    "deadline_s": 0.0,
    "cache_salt": "",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    engine = InProcess("cpu", threads=options.threads)
    loaded = engine.load(options.folder)
    print(json.dumps(loaded.info), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        run = engine.run([tuple(ids) for ids in asked["prompts"]], asked["tokens"])
        answer = {"seconds": run.seconds, "tokens": run.num_tokens}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
