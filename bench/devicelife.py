"""One device process by itself: a supervisor's and a worker's ends, without a node.

Used by programs of this folder that break devices. Started by exec, as a node does it
where it has no zygote; link, page and rings are the real ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ipc.channel import WorkerEnd
from ipc.child import pass_settings
from ipc.link import LinkClosed, create_link
from ipc.messages import (
    Attach,
    Failed,
    Finished,
    Inject,
    LinkUp,
    Load,
    RingUp,
    Sampling,
    Submit,
    Tokens,
)
from ipc.pair import create_pair
from ipc.status import StatusReader, create_page

MODEL = "m"
_PATIENCE_S = 300.0
_RING_BYTES = 1 << 20
Up = TypeVar("Up")


class LifeFailed(Exception):
    """Something that was waited for didn't come."""


class DeviceLife:
    def __init__(self, kind: str, generation: int, **settings: Any) -> None:
        self.generation = generation
        self.reports: list[LinkUp] = []
        self.messages: list[RingUp] = []
        self._link, theirs = create_link()
        page_fd = create_page()
        self.page = StatusReader(page_fd)
        given = {
            "name": f"{kind}-0",
            "kind": kind,
            "generation": generation,
            "link_fd": theirs.fileno(),
            "page_fd": page_fd,
            **settings,
        }
        fds = (pass_settings(given), theirs.fileno(), page_fd)
        command = [sys.executable, "-m", "neurond.device", "--settings-fd", str(fds[0])]
        self.process = subprocess.Popen(command, pass_fds=fds)
        for fd in (fds[0], page_fd):
            os.close(fd)
        theirs.close()
        self._end: WorkerEnd | None = None

    def attach(self) -> None:
        pair = create_pair(generation=self.generation, capacity_bytes=_RING_BYTES)
        self._link.send(Attach(1, self.generation, False), pair.numbers())
        self._end = WorkerEnd(
            pair,
            generation=self.generation,
            on_message=self.messages.append,
            on_broken=lambda error: None,
        )

    def load(self, folder: Path, **options: Any) -> None:
        self._link.send(Load(MODEL, str(folder), "auto", "none", 0, options))

    def inject(self, fault: str, **more: int) -> None:
        self._link.send(Inject(fault, **more))

    def ask(
        self, request: int, ids: tuple[int, ...], num_prompt: int, most: int
    ) -> None:
        """Greedy; ids behind the prompt were emitted before."""
        assert self._end is not None
        self._end.submit(
            Submit(
                id=request,
                attempt=int(len(ids) > num_prompt),
                model=MODEL,
                ids=ids,
                num_prompt=num_prompt,
                choice=0,
                seed=1,
                sampling=Sampling(temperature=0.0, ignore_eos=True),
                max_tokens=most,
                stop_ids=(),
                grammar="",
                principal="",
                priority=100,
                deadline_s=0.0,
                cache_salt="",
            )
        )

    def report(self, kind: type[Up]) -> Up:
        """The first of its kind. Raises LifeFailed."""

        def found() -> Up | None:
            self._receive()
            return next((r for r in self.reports if isinstance(r, kind)), None)

        return self.until(found, kind.__name__)

    def ids(self, request: int) -> list[int]:
        """Emitted until now."""
        if self._end is not None:
            self._end.drain()
        rows = [row for m in self.messages if isinstance(m, Tokens) for row in m.rows]
        return [token for row in rows if row.id == request for token in row.ids]

    def ended(self, request: int) -> bool:
        self.ids(request)
        ends = (m for m in self.messages if isinstance(m, Finished | Failed))
        return any(message.id == request for message in ends)

    def late(self) -> bool:
        """Whether its armed deadline is past."""
        deadline_s = self.page.read().deadline_s
        return 0 < deadline_s < time.monotonic()

    def gone(self) -> bool:
        self._receive()
        return self.process.poll() is not None

    def until(self, condition: Callable[[], Up | None], what: str) -> Up:
        """Raises LifeFailed."""
        end_s = time.monotonic() + _PATIENCE_S
        while not (value := condition()):
            if time.monotonic() > end_s:
                raise LifeFailed(f"no {what} in {_PATIENCE_S:.0f} s")
            time.sleep(0.0002)
        return value

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self._end is not None:
            self._end.close()
        self._link.close()
        self.page.close()

    def _receive(self) -> None:
        try:
            while (received := self._link.receive()) is not None:
                self.reports.append(received[0])  # type: ignore[arg-type]
        except LinkClosed:
            pass
