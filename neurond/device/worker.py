"""The device process's loop: orders, requests, one slice of loading, one step, repeat.

Device process, torch-free; torch comes with the backend of a real device. The loop
alone writes the status page, so that a stuck step looks stuck. It never blocks while
there is work; idle, it parks its rings and polls link and bells for at most 100 ms.

Exit: 0 when told to stop or when the supervisor is gone, 111 after a Fault on the link.
Invariant: what one worker does (full ring, broken records, death) never stops another.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Generator, Mapping
from typing import Any, NoReturn

from ipc.child import EXIT_OK, EXIT_TEMPORARY, set_title
from ipc.errors import error_for
from ipc.journal import Journal
from ipc.link import Link, LinkClosed
from ipc.messages import (
    Attach,
    Cancel,
    Detach,
    Hello,
    Inject,
    Load,
    Message,
    MessageError,
    Stop,
    Unload,
    Unloaded,
)
from ipc.process import be_first_to_go
from ipc.status import Phase, StatusWriter
from neurond.device.backend import Backend
from neurond.device.backends import make_backend
from neurond.device.engine import Engine
from neurond.device.idleprobe import IdleProbe
from neurond.device.injection import InjectingBackend
from neurond.device.loads import Loads
from neurond.device.mailbox import Mailboxes
from neurond.device.outcomes import Addressed
from neurond.device.reports import Reports
from neurond.device.settings import DeviceSettings
from neurond.device.surroundings import REAL, Surroundings
from neurond.device.verdict import FATAL_CLASSES, DeviceDied, died, fault_class

_IDLE_POLL_MS = 100
_MEMORY_EVERY_S = 1.0
_LOAD_SHARE_S = 0.02
_BACKLOG_POLL_MS = 5
"""A worker with a full ring doesn't ring when it has made room."""
_STALLED_POLL_MS = 2
"""Nobody rings when what a request waits for has been built."""


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
    be_first_to_go()
    known = DeviceSettings.of(settings)
    journal = Journal("neurond")
    worker = Worker(
        Link.from_fd(link_fd),
        StatusWriter(page_fd),
        make_backend(kind, known),
        known,
        journal,
        generation=generation,
    )
    code = worker.run()
    journal.flush()
    sys.stderr.flush()
    os._exit(code)


class Worker:
    """Owns link and page; the engine owns the sequences, the mailboxes the rings."""

    def __init__(  # noqa: PLR0913  the process's collaborators
        self,
        link: Link,
        page: StatusWriter,
        backend: Backend,
        settings: DeviceSettings,
        journal: Journal,
        *,
        generation: int,
        surroundings: Surroundings = REAL,
    ) -> None:
        self._link = link
        self._page = page
        self._backend = backend
        self._settings = settings
        self._journal = journal
        self._generation = generation
        self._clock = clock = surroundings.clock
        self._poll = surroundings.poll()
        self._stopping = False
        self._memory_told_s = 0.0
        self._reports = Reports(link)
        life: Any = {"generation": generation, "clock": clock}
        self._idle_probe = IdleProbe(backend, page, settings, **life)
        self._engine = Engine(backend, page, settings, journal, **life)
        drop_requests = self._engine.drop_worker
        self._mailboxes = Mailboxes(
            journal, page, self._poll, drop_requests, end=surroundings.end
        )
        self._loads = Loads(
            backend,
            page,
            generation=generation,
            deadline_s=settings.load_deadline_s,
            on_loaded=self._engine.add_model,
            journal=journal,
        )

    def run(self) -> int:
        """The exit code."""
        turns = self.turns()
        while True:
            try:
                next(turns)
            except StopIteration as end:
                return int(end.value)

    def turns(self) -> Generator[None, None, int]:
        """A yield before each turn; returns the exit code."""
        try:
            self._open()
            while not self._stopping:
                yield
                self._turn()
            self._stop()
        except LinkClosed:
            return EXIT_OK
        except DeviceDied as death:
            return self._say_last_words(death)
        except Exception as error:  # the step border: pages, states, memory
            if fault_class(error) not in FATAL_CLASSES:
                raise
            return self._say_last_words(self._died(error))
        return EXIT_OK

    def _open(self) -> None:
        self._page.arm(Phase.CONTEXT, self._settings.boot_deadline_s)
        memory = self._open_backend()
        self._page.idle()
        self._poll.register(self._link.fileno(), select.POLLIN)
        hello = Hello(
            pid=os.getpid(),
            generation=self._generation,
            backend=self._backend.name,
            memory_total_bytes=memory.total_bytes,
            memory_free_bytes=memory.free_bytes,
        )
        self._reports.put(hello)
        self._publish_memory()

    def _open_backend(self) -> Any:
        try:
            return self._backend.open()
        except Exception as error:  # the step border: a context that can't be had
            raise self._died(error) from error

    def _turn(self) -> None:
        self._take_orders()
        self._take_requests()
        if self._loads.busy:
            self._load_slices()
        if self._engine.busy:
            self._deliver(self._engine.step())
            self._idle_probe.put_off()
        self._reports.flush()
        flushed = self._mailboxes.flush()
        if self._loads.busy or self._stopping or not self._engine.is_stalled:
            return
        patience_ms = _STALLED_POLL_MS if self._engine.busy else _IDLE_POLL_MS
        self._wait(patience_ms if flushed else min(patience_ms, _BACKLOG_POLL_MS))

    def _wait(self, timeout_ms: int) -> None:
        """Sleep until someone rings; the page shows a beat at every turn."""
        self._page.idle()
        if not self._engine.busy:
            self._idle_probe.turn()
        self._refresh_memory()
        if self._mailboxes.park():
            self._poll.poll(timeout_ms)

    def _refresh_memory(self) -> None:
        """Freed bytes may show up late (S35), and others may take some."""
        now_s = self._clock()
        if now_s >= self._memory_told_s + _MEMORY_EVERY_S:
            self._memory_told_s = now_s
            self._publish_memory()

    # -- orders from the supervisor

    def _take_orders(self) -> None:
        try:
            while (received := self._link.receive()) is not None:
                self._obey(*received)
        except MessageError as error:
            self._journal.error("order not understood", fault=str(error))

    def _obey(self, message: Message, fds: list[int]) -> None:
        match message:
            case Attach(worker=worker, generation=generation):
                self._mailboxes.attach(worker, fds, generation=generation)
            case Detach(worker=worker):
                self._mailboxes.detach(worker)
            case Load(model=model):
                self._deliver(self._engine.drop_model(model))
                self._loads.add(message)
            case Unload(model=model):
                self._unload(model)
            case Stop():
                self._stopping = True
            case Inject() if isinstance(self._backend, InjectingBackend):
                self._backend.obey(message, self._journal)
            case _:
                kind = type(message).__name__
                self._journal.error("order not understood", order=kind)

    def _unload(self, model: str) -> None:
        self._loads.cancel(model)
        self._deliver(self._engine.drop_model(model))
        self._reports.put(Unloaded(model, self._publish_memory()))

    def _load_slices(self) -> None:
        """As many as fit into their share of a turn: most take a millisecond or less,
        and a load that got one per step would take as many steps."""
        until_s = self._clock() + _LOAD_SHARE_S
        while self._loads.busy and self._clock() < until_s:
            for message in self._loads.advance():
                self._reports.put(message)
        if not self._loads.busy:
            self._publish_memory()

    # -- requests and answers

    def _take_requests(self) -> None:
        for worker, message in self._mailboxes.receive():
            if isinstance(message, Cancel):
                self._engine.cancel(worker, message.id)
            else:
                answer = self._engine.submit(worker, message)
                self._deliver([(worker, answer)] if answer else [])
        self._mailboxes.flush()  # now: the first step of one may be the last of all

    def _deliver(self, messages: list[Addressed]) -> None:
        for worker, message in messages:
            self._mailboxes.put(worker, message)

    def _publish_memory(self) -> int:
        free_bytes = self._backend.memory().free_bytes
        resident = sum(m.resident_bytes for m in self._engine.models.values())
        self._page.set("memory_free_bytes", free_bytes)
        self._page.set("memory_resident_bytes", resident)
        return free_bytes

    # -- the end

    def _stop(self) -> None:
        self._page.arm(Phase.STOPPING, self._settings.decode_deadline_s)
        error = error_for("shutting_down", "the device is stopping")
        self._deliver(self._engine.fail_everything(error))
        self._mailboxes.flush()
        self._reports.flush()

    def _died(self, error: Exception) -> DeviceDied:
        """Outside of steps: no request is charged."""
        return died(error, model="", generation=self._generation, requests=())

    def _say_last_words(self, death: DeviceDied) -> int:
        """The exit code."""
        fault = death.fault
        self._journal.error(
            "device fault, ending",
            event="device.fault",
            model=fault.model,
            generation=fault.generation,
            fault=" < ".join(fault.chain),
        )
        try:
            self._reports.last_words(fault)
        except LinkClosed:
            pass  # the supervisor went first; nobody is left to be told
        return EXIT_TEMPORARY
