"""The device process's loop: orders, requests, one slice of loading, one step, repeat.

Device process, torch-free; torch comes with the backend of a real device. It alone
writes the status page, so that a stuck step looks stuck. It never blocks while there is
work; idle, it parks its rings and polls link and bells for at most 100 ms.

Exit: 0 when told to stop or when the supervisor is gone, 111 after a Fault on the link.
Invariant: what one worker does (full ring, broken records, death) never stops another.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from ipc import fence
from ipc.channel import ChannelBroken, DeviceEnd, PairFds
from ipc.child import EXIT_OK, EXIT_TEMPORARY, set_title
from ipc.errors import cause_chain, error_for
from ipc.journal import Journal
from ipc.link import Link, LinkClosed
from ipc.messages import (
    Attach,
    Cancel,
    Detach,
    Hello,
    Load,
    Message,
    Stop,
    Submit,
    Unload,
    Unloaded,
)
from ipc.status import Phase, StatusWriter
from neurond.device.backend import Backend
from neurond.device.engine import Addressed, Engine
from neurond.device.loads import Loads
from neurond.device.mailbox import Mailbox
from neurond.device.settings import DeviceSettings
from neurond.device.verdict import DeviceDied, died

_IDLE_POLL_MS = 100
_BACKLOG_POLL_MS = 5
"""A worker with a full ring doesn't ring when it has made room."""


def main(  # noqa: PLR0913  what the fork hands over
    name: str,
    kind: str,
    generation: int,
    link_fd: int,
    page_fd: int,
    settings: Mapping[str, Any],
) -> NoReturn:
    """Run the device process to its end; never returns into the forking parent."""
    set_title(f"neurond: device {name}")
    fence.register()
    known = DeviceSettings.of(settings)
    worker = Worker(
        Link.from_fd(link_fd),
        StatusWriter(page_fd),
        make_backend(kind, known),
        known,
        Journal("neurond"),
        generation=generation,
    )
    code = worker.run()
    sys.stderr.flush()
    os._exit(code)


def make_backend(kind: str, settings: DeviceSettings) -> Backend:
    """The backend of a device kind; only a real one imports torch."""
    if kind == "fake":
        from neurond.device.fake import FakeBackend

        return FakeBackend(settings.memory_bytes)
    from neurond.device.runner import TorchBackend

    return TorchBackend(kind, settings)


class Worker:
    """Owns link, page and mailboxes; the engine owns the sequences."""

    def __init__(  # noqa: PLR0913  the process's collaborators
        self,
        link: Link,
        page: StatusWriter,
        backend: Backend,
        settings: DeviceSettings,
        journal: Journal,
        *,
        generation: int,
    ) -> None:
        self._link = link
        self._page = page
        self._backend = backend
        self._settings = settings
        self._journal = journal
        self._generation = generation
        self._mailboxes: dict[int, Mailbox] = {}
        self._poll = select.poll()
        self._stopping = False
        self._engine = Engine(backend, page, settings, journal, generation=generation)
        self._loads = Loads(
            backend,
            page,
            generation=generation,
            deadline_s=settings.load_deadline_s,
            on_loaded=self._engine.add_model,
        )

    def run(self) -> int:
        """The exit code."""
        try:
            self._open()
            while not self._stopping:
                self._turn()
            self._stop()
        except LinkClosed:
            return EXIT_OK
        except DeviceDied as death:
            self._say_last_words(death)
            return EXIT_TEMPORARY
        return EXIT_OK

    def _open(self) -> None:
        self._page.arm(Phase.CONTEXT, self._settings.boot_deadline_s)
        try:
            memory = self._backend.open()
        except Exception as error:  # the step border: a context that can't be had
            nobody: tuple[int, ...] = ()
            generation = self._generation
            raise died(
                error, model="", generation=generation, requests=nobody
            ) from error
        self._page.idle()
        self._poll.register(self._link.fileno(), select.POLLIN)
        hello = Hello(
            pid=os.getpid(),
            generation=self._generation,
            backend=self._backend.name,
            memory_total_bytes=memory.total_bytes,
            memory_free_bytes=memory.free_bytes,
        )
        self._link.send(hello)
        self._publish_memory()

    def _turn(self) -> None:
        self._take_orders()
        self._take_requests()
        if self._loads.busy:
            for message in self._loads.advance():
                self._link.send(message)
        if self._engine.busy:
            self._deliver(self._engine.step())
        self._flush()
        if not (self._engine.busy or self._loads.busy or self._stopping):
            self._wait()

    def _wait(self) -> None:
        """Sleep until someone rings; the page shows a beat at every turn."""
        self._page.idle()
        if not all([mailbox.end.park() for mailbox in self._mailboxes.values()]):
            return
        behind = any(mailbox.backlog for mailbox in self._mailboxes.values())
        self._poll.poll(_BACKLOG_POLL_MS if behind else _IDLE_POLL_MS)

    # -- orders from the supervisor

    def _take_orders(self) -> None:
        while (received := self._link.receive()) is not None:
            self._obey(*received)

    def _obey(self, message: Message, fds: list[int]) -> None:
        match message:
            case Attach():
                self._attach(message, fds)
            case Detach(worker=worker):
                self._drop(worker)
            case Load():
                self._load(message)
            case Unload(model=model):
                self._unload(model)
            case Stop():
                self._stopping = True
            case _:
                self._journal.error(
                    "order not understood", order=type(message).__name__
                )

    def _attach(self, message: Attach, fds: list[int]) -> None:
        self._drop(message.worker)
        try:
            end = DeviceEnd(PairFds(*fds), generation=message.generation)
        except ChannelBroken as error:
            self._journal.error("ring pair refused", fault=str(error))
            return
        self._mailboxes[message.worker] = Mailbox(end)
        self._poll.register(end.bell.fileno(), select.POLLIN)

    def _drop(self, worker: int) -> None:
        """The worker is gone: so are its requests."""
        self._engine.drop_worker(worker)
        mailbox = self._mailboxes.pop(worker, None)
        if mailbox is not None:
            self._poll.unregister(mailbox.end.bell.fileno())
            mailbox.end.close()

    def _load(self, spec: Load) -> None:
        if spec.model in self._engine.models:
            self._deliver(self._engine.drop_model(spec.model))
        self._loads.add(spec)

    def _unload(self, model: str) -> None:
        self._loads.cancel(model)
        self._deliver(self._engine.drop_model(model))
        memory = self._publish_memory()
        self._link.send(Unloaded(model, memory))

    # -- requests from the workers

    def _take_requests(self) -> None:
        for worker, mailbox in list(self._mailboxes.items()):
            try:
                for message in mailbox.end.receive():
                    self._serve(worker, message)
            except ChannelBroken as error:
                self._break(worker, error)

    def _serve(self, worker: int, message: Submit | Cancel) -> None:
        if isinstance(message, Cancel):
            self._engine.cancel(worker, message.id)
        else:
            self._deliver([(worker, self._engine.submit(worker, message))])

    def _break(self, worker: int, error: ChannelBroken) -> None:
        chain = " < ".join(cause_chain(error))
        self._journal.error("worker dropped: its ring is broken", fault=chain)
        self._drop(worker)

    # -- answers

    def _deliver(self, messages: list[Addressed]) -> None:
        for worker, message in messages:
            mailbox = self._mailboxes.get(worker)
            if mailbox is not None:
                mailbox.put(message)

    def _flush(self) -> None:
        for worker, mailbox in list(self._mailboxes.items()):
            try:
                mailbox.flush()
            except ChannelBroken as error:
                self._break(worker, error)
                continue
            if mailbox.overfull:
                self._abandon(worker, mailbox)

    def _abandon(self, worker: int, mailbox: Mailbox) -> None:
        """It reads too slowly, or not at all."""
        self._journal.error("worker too slow: its requests dropped")
        self._page.add("ring_full_total")
        mailbox.abandon(self._engine.drop_worker(worker))
        if mailbox.overfull:  # a flood of refusals that nobody reads
            self._drop(worker)

    def _publish_memory(self) -> int:
        free_bytes = self._backend.memory().free_bytes
        self._page.set("memory_free_bytes", free_bytes)
        resident = sum(m.resident_bytes for m in self._engine.models.values())
        self._page.set("memory_resident_bytes", resident)
        return free_bytes

    # -- the end

    def _stop(self) -> None:
        self._page.arm(Phase.STOPPING, self._settings.decode_deadline_s)
        error = error_for("shutting_down", "the device is stopping")
        self._deliver(self._engine.fail_everything(error))
        self._flush()

    def _say_last_words(self, death: DeviceDied) -> None:
        try:
            self._link.send(death.fault)
        except LinkClosed:
            pass  # the supervisor went first; nobody is left to be told
