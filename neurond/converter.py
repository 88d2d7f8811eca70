"""GGUF file → model folder, by a job process of its own, once per file.

Supervisor. A job is forked like a device and talks on a link like one; its death
without a result is a failed load, never more.

Invariant: at most one job per target runs; whoever wants the same folder waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from ipc.child import Exit, Reaper
from ipc.errors import HostError, ServiceError, from_wire
from ipc.link import Link, LinkClosed, LinkFull, create_link
from ipc.messages import Convert, Converted, LoadFailed, LoadProgress, MessageError
from neurond.forker import Forker, ForkFailed, Order

OnProgress = Callable[[int, int], None]
"""Takes what is done and the total."""


class Converter:
    def __init__(self, forker: Forker, reaper: Reaper, *, deadline_s: float) -> None:
        self._forker = forker
        self._reaper = reaper
        self._deadline_s = deadline_s
        self._jobs: dict[Path, _Job] = {}

    async def convert(self, order: Convert, on_progress: OnProgress) -> None:
        """Until the folder stands. Raises ServiceError."""
        target = Path(order.target)
        job = self._jobs.get(target)
        if job is None:
            job = self._jobs[target] = _Job(self._forker, self._reaper)
            asyncio.get_running_loop().create_task(self._run(job, order))
        job.listeners.append(on_progress)
        await asyncio.shield(job.done)

    async def _run(self, job: _Job, order: Convert) -> None:
        try:
            await asyncio.wait_for(job.run(order), self._deadline_s)
            job.done.set_result(None)
        except TimeoutError:
            job.fail(HostError("the conversion took too long", code="load_failed"))
        except ServiceError as error:
            job.fail(error)
        finally:
            del self._jobs[Path(order.target)]
            job.close()


class _Job:
    """One process."""

    def __init__(self, forker: Forker, reaper: Reaper) -> None:
        self._forker = forker
        self._reaper = reaper
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._kill: Callable[[], None] = lambda: None
        self._result: asyncio.Future[None] = self._loop.create_future()
        self.done: asyncio.Future[None] = self._loop.create_future()
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.listeners: list[OnProgress] = []

    async def run(self, told: Convert) -> None:
        """Raises ServiceError."""
        ours, theirs = create_link()
        self._link = ours
        order: Order = ("convert", "convert", {})
        try:
            child = await self._forker.fork(order, (theirs.fileno(),), 120.0)
        except ForkFailed as error:
            text = "the conversion could not be started"
            raise HostError(text, code="load_failed", chain=(str(error),)) from error
        finally:
            theirs.close()
        self._kill = child.kill
        self._reaper.watch(child, lambda _child, end: self._ended(end))
        self._loop.add_reader(ours.fileno(), self._read)
        try:
            ours.send(told)
        except (LinkClosed, LinkFull):
            pass  # its exit says more
        await self._result

    def fail(self, error: ServiceError) -> None:
        self.done.set_exception(error)

    def close(self) -> None:
        self._kill()
        if self._link is not None:
            self._loop.remove_reader(self._link.fileno())
            self._link.close()
            self._link = None

    def _read(self) -> None:
        while self._link is not None:
            try:
                received = self._link.receive()
            except LinkClosed:
                self._loop.remove_reader(self._link.fileno())
                return
            except MessageError:
                continue
            if received is None:
                return
            self._take(received[0])

    def _take(self, message: object) -> None:
        match message:
            case LoadProgress(done=done, total=total):
                for listener in self.listeners:
                    listener(done, total)
            case Converted() if not self._result.done():
                self._result.set_result(None)
            case LoadFailed(error=wire) if not self._result.done():
                self._result.set_exception(from_wire(wire))
            case _:
                pass  # nothing else comes from a conversion

    def _ended(self, end: Exit) -> None:
        self._read()
        if not self._result.done():
            text = f"the conversion ended without a result ({end})"
            self._result.set_exception(HostError(text, code="load_failed"))
