"""An engine on torch in the test's own process: no rings, no supervisor.

Pages and journal are the real ones. For what a model computes; what a process does is
tested with `rig`.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipc.journal import Journal
from ipc.messages import (
    Failed,
    Finished,
    LinkUp,
    Load,
    Loaded,
    LoadFailed,
    RingUp,
    Tokens,
)
from ipc.status import StatusReader, StatusWriter, create_page
from neurond.device.engine import Engine
from neurond.device.loads import Loads
from neurond.device.runner import TorchBackend
from neurond.device.settings import DeviceSettings
from tests.neurond.device.rig import make_submit

WORKER = 1


class Host:
    def __init__(
        self,
        kind: str = "cpu",
        *,
        clock: Callable[[], float] = time.monotonic,
        **settings: Any,
    ) -> None:
        known = DeviceSettings.of({"threads": 1, **settings})
        page_fd = create_page()
        self.page = StatusReader(page_fd)
        self.written = io.StringIO()
        self.backend = TorchBackend(kind, known)
        page = StatusWriter(page_fd)
        journal = Journal("neurond", stream=self.written)
        self.engine = Engine(
            self.backend, page, known, journal, generation=1, clock=clock
        )
        self._loads = Loads(
            self.backend,
            page,
            generation=1,
            deadline_s=60,
            on_loaded=self.engine.add_model,
            journal=journal,
        )
        self.backend.open()

    def load(self, folder: Path, *, model: str = "m", **more: Any) -> Loaded:
        reports = self.try_load(folder, model=model, **more)
        assert isinstance(reports[-1], Loaded), reports[-1]
        return reports[-1]

    def try_load(
        self,
        folder: Path,
        *,
        model: str = "m",
        dtype: str = "auto",
        quant: str = "none",
        context: int = 0,
    ) -> list[LinkUp]:
        self._loads.add(Load(model, str(folder), dtype, quant, context, {}))
        reports: list[LinkUp] = []
        while self._loads.busy:
            reports += self._loads.advance()
        return reports

    def refusal(self, folder: Path, **more: Any) -> str:
        report = self.try_load(folder, **more)[-1]
        assert isinstance(report, LoadFailed), report
        assert report.error[0] == "load_failed"
        return str(report.error[1])

    def run(self, *prompts: tuple[int, ...], **more: Any) -> list[list[int]]:
        """Emitted ids of each prompt, all running at once."""
        for number, ids in enumerate(prompts):
            self.engine.submit(WORKER, make_submit(number, ids, **more))
        messages = self.drain()
        assert not [m for m in messages if isinstance(m, Failed)]
        assert len([m for m in messages if isinstance(m, Finished)]) == len(prompts)
        return [emitted(messages, number) for number in range(len(prompts))]

    def drain(self) -> list[RingUp]:
        messages: list[RingUp] = []
        while self.engine.busy:
            messages += [message for _, message in self.engine.step()]
        return messages


def emitted(messages: list[RingUp], request: int) -> list[int]:
    ids: list[int] = []
    for message in messages:
        for row in message.rows if isinstance(message, Tokens) else ():
            if row.id == request:
                assert row.start == len(ids)
                ids += row.ids
    return ids


def ends(messages: list[RingUp]) -> dict[int, Finished | Failed]:
    return {m.id: m for m in messages if isinstance(m, Finished | Failed)}
