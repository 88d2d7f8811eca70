"""A device process with its supervisor's and its workers' ends, for tests.

The process is a real one, forked like the zygote forks it; link, page and rings are the
real ones too.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ipc.channel import WorkerEnd
from ipc.child import close_fds_except, die_with_parent
from ipc.link import LinkClosed, create_link
from ipc.messages import (
    Attach,
    Cancel,
    Detach,
    Failed,
    Finished,
    Hello,
    LinkDown,
    LinkUp,
    Load,
    Loaded,
    RingUp,
    Sampling,
    Submit,
    Tokens,
)
from ipc.pair import PairFds, create_pair
from ipc.status import StatusReader, create_page
from neurond.device import fakemodel, worker
from neurond.device.fakescript import IM_END, IM_START

PATIENCE_S = 60.0
Up = TypeVar("Up")


def wait_for(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Poll until it is true."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"{what} did not come true in {PATIENCE_S} s")
        time.sleep(0.001)
    return value


def chat_ids(text: str) -> tuple[int, ...]:
    """The fake model's prompt for one user message."""
    newline = ord("\n")
    user = [IM_START, *b"user\n", *text.encode(), IM_END, newline]
    return (*user, IM_START, *b"assistant\n")


def make_submit(request: int, ids: tuple[int, ...], **more: Any) -> Submit:
    """Greedy, unbounded, for the model "m", unless told otherwise."""
    fields: dict[str, Any] = {
        "id": request,
        "attempt": 0,
        "model": "m",
        "ids": ids,
        "num_prompt": len(ids),
        "choice": 0,
        "seed": 1,
        "sampling": Sampling(temperature=0.0),
        "max_tokens": 4096,
        "stop_ids": (),
        "grammar": "",
        "principal": "",
        "priority": 100,
        "deadline_s": 0.0,
        "cache_salt": "",
    }
    return Submit(**{**fields, **more})


def error_code(end: object) -> str:
    """Code of a Failed."""
    assert isinstance(end, Failed), end
    return str(end.error[0])


class WorkerSide:
    """One front-end worker's end of a ring pair."""

    def __init__(self, number: int, end: WorkerEnd, inbox: list[RingUp]) -> None:
        self.number = number
        self.end = end
        self.inbox = inbox
        self.broken: list[Exception] = []

    def ask(self, request: int, text: str, **more: Any) -> None:
        fields = {"ids": chat_ids(text), **more}
        self.end.submit(make_submit(request, **fields))

    def cancel(self, request: int) -> None:
        self.end.submit(Cancel(request))

    def poll(self) -> list[RingUp]:
        self.end.drain()
        return self.inbox

    def ids(self, request: int) -> list[int]:
        """Emitted so far; asserts that they join without gap or repeat."""
        emitted: list[int] = []
        for message in self.poll():
            for row in message.rows if isinstance(message, Tokens) else ():
                if row.id == request:
                    assert row.start == len(emitted)
                    emitted += row.ids
        return emitted

    def text(self, request: int) -> str:
        return bytes(self.ids(request)).decode(errors="replace")

    def ended(self, request: int) -> Finished | Failed | None:
        ends = [
            message
            for message in self.poll()
            if isinstance(message, Finished | Failed) and message.id == request
        ]
        assert len(ends) <= 1, ends
        return ends[0] if ends else None

    def wait_end(self, request: int) -> Finished | Failed:
        end: Finished | Failed = wait_for(lambda: self.ended(request), "the end")
        return end

    def answer(self, request: int, text: str, **more: Any) -> str:
        """Ask, await a finish, return the text."""
        self.ask(request, text, **more)
        end = self.wait_end(request)
        assert isinstance(end, Finished), end
        return self.text(request)


Start = Callable[[int, int], "subprocess.Popen[bytes]"]
"""Starts a process that will be the device of this link and page."""


def fork_device(
    kind: str, generation: int, settings: dict[str, Any], errors_fd: int
) -> Start:
    """A device forked from this process, as the zygote does it."""

    def start(link_fd: int, page_fd: int) -> Any:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            die_with_parent(parent)
            os.dup2(errors_fd, 2)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            close_fds_except((link_fd, page_fd))
            worker.main("cpu-0", kind, generation, link_fd, page_fd, settings)
        return Forked(pid)

    return start


class Forked:
    """As much of a Popen as a rig needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


class Rig:
    """Owns one device process and everything around it."""

    def __init__(
        self,
        kind: str = "fake",
        *,
        generation: int = 1,
        start: Start | None = None,
        **settings: Any,
    ) -> None:
        self.link, theirs = create_link()
        page_fd = create_page()
        self.page = StatusReader(page_fd)
        self.reports: list[LinkUp] = []
        self.sides: list[WorkerSide] = []
        self.errors_fd, errors = os.pipe()
        start = start or fork_device(kind, generation, settings, errors)
        self.process = start(theirs.fileno(), page_fd)
        for fd in (page_fd, errors):
            os.close(fd)
        theirs.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    def order(self, message: LinkDown, fds: tuple[int, ...] = ()) -> None:
        self.link.send(message, fds)

    def wait_report(self, kind: type[Up], *, count: int = 1) -> Up:
        """The count-th report of this kind."""

        def found() -> Up | None:
            self._receive()
            reports = [r for r in self.reports if isinstance(r, kind)]
            return reports[count - 1] if len(reports) >= count else None

        report: Up = wait_for(found, kind.__name__)
        return report

    def ready(self, folder: Path, **options: Any) -> WorkerSide:
        """Hello, a fake model "m" loaded, one worker attached."""
        self.wait_report(Hello)
        self.load("m", fakemodel.build(folder), **options)
        return self.attach(1)

    def load(self, model: str, folder: Path, **options: Any) -> Loaded:
        self.order(Load(model, str(folder), "auto", "none", 0, options))
        before = sum(isinstance(r, Loaded) for r in self.reports)
        return self.wait_report(Loaded, count=before + 1)

    def attach(
        self,
        number: int,
        *,
        capacity_bytes: int = 1 << 18,
        pair: PairFds | None = None,
    ) -> WorkerSide:
        if pair is None:
            pair = create_pair(generation=number, capacity_bytes=capacity_bytes)
        self.order(Attach(number, number, False), pair.numbers())
        inbox: list[RingUp] = []
        broken: list[Exception] = []
        end = WorkerEnd(
            pair, generation=number, on_message=inbox.append, on_broken=broken.append
        )
        side = WorkerSide(number, end, inbox)
        side.broken = broken
        self.sides.append(side)
        return side

    def detach(self, side: WorkerSide) -> None:
        self.order(Detach(side.number))

    def wait_exit(self) -> int:
        """Exit code, negative for a signal."""
        wait_for(lambda: self.process.poll() is not None, "the exit")
        code = self.process.poll()
        assert code is not None
        return code

    def journal(self) -> str:
        """What the process wrote on stderr until now."""
        written = b""
        while select.select([self.errors_fd], [], [], 0)[0]:
            chunk = os.read(self.errors_fd, 1 << 16)
            if not chunk:
                break
            written += chunk
        return written.decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.wait_exit()
        for side in self.sides:
            side.end.close()
        self.link.close()
        self.page.close()
        os.close(self.errors_fd)

    def _receive(self) -> None:
        try:
            while (received := self.link.receive()) is not None:
                self.reports.append(received[0])  # type: ignore[arg-type]
        except LinkClosed:
            pass
