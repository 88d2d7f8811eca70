"""The HTTP front end of a daemon: gunicorn's arbiter, embedded under our supervisor.

Runs in the arbiter process, a child of the supervisor, which owns the listening
sockets and passes them by number: killing the arbiter refuses no connection. Arbiter
and workers die with their parent. Nothing is read from files, the command line or the
service manager; no SIGHUP, no control socket, no access log.

    supervisor ── exec ──► arbiter ── fork ──► worker 1 … N   (ipc.asgi)
    SIGTERM to the arbiter: workers drain, exit 0

Invariant: a worker that can't boot stops a front end that is starting, never one that
is serving.
"""

from __future__ import annotations

import importlib
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from ipc.asgi import HttpWorker
from ipc.bugs import where
from ipc.errors import cause_chain
from ipc.journal import Journal
from ipc.process import die_with_parent, set_title

WORKER_NUMBER = "CORTEX_WORKER"
"""Environment variable of a worker: its number, from 1."""

_BACKLOG = 2048
_BLOCKED_LOOP_S = 30
_OPEN_FILES = 65536
_CUT_S = 3.0
"""What a worker gets, after the drain, to end the streams it must cut."""
_SHORT_LIFE_S = 5.0
_MAX_PAUSE_S = 2.0
_FOREIGN_VARIABLES = (
    *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"),
    *("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"),
    *("GUNICORN_PID", "GUNICORN_FD"),
)
_UNUSED_SIGNALS = (
    *(signal.SIGINT, signal.SIGHUP, signal.SIGUSR2),
    *(signal.SIGWINCH, signal.SIGTTIN, signal.SIGTTOU),
)


@dataclass(frozen=True, slots=True)
class FrontendSettings:
    """What a front end is told; plain values only, so that it fits a settings-fd.

    `app` is "module:function"; the function is called in each worker with `extra` and
    returns the ASGI app. `extra["child_exit"]`, "module:function", is called in the
    arbiter with the pid of a worker that is gone. `preload` are modules that the
    arbiter imports once for all workers; they must start no thread.
    """

    title_prefix: str
    app: str
    fds: tuple[int, ...]
    workers: int
    graceful_timeout_s: float
    header_deadline_s: float = 10.0
    keep_alive_s: float = 75.0
    write_stall_s: float = 60.0
    max_headers: int = 100
    max_header_bytes: int = 8192
    max_line_bytes: int = 8192
    max_connections: int = 5000
    preload: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


def run(settings: FrontendSettings) -> NoReturn:
    """Be the arbiter until SIGTERM."""
    die_with_parent()
    for name in _FOREIGN_VARIABLES:
        os.environ.pop(name, None)
    _raise_fd_limit()
    for name in settings.preload:
        importlib.import_module(name)
    _Application(settings).run()
    sys.exit(0)


class _Application(BaseApplication):  # type: ignore[misc]
    """gunicorn's view of our settings."""

    def __init__(self, settings: FrontendSettings) -> None:
        self.settings = settings
        self.arbiter_hooks = _ArbiterHooks(settings)
        super().__init__(prog=settings.title_prefix)

    def load_config(self) -> None:
        given, hooks = self.settings, self.arbiter_hooks
        options = {
            "bind": [f"fd://{fd}" for fd in given.fds],
            "backlog": _BACKLOG,
            "workers": given.workers,
            "worker_class": HttpWorker,
            "asgi_loop": "uvloop",
            "asgi_disconnect_grace_period": 0,
            "timeout": _BLOCKED_LOOP_S,
            "graceful_timeout": round(given.graceful_timeout_s + _CUT_S),
            "limit_request_line": given.max_line_bytes,
            "limit_request_fields": given.max_headers,
            "limit_request_field_size": given.max_header_bytes,
            "forwarded_allow_ips": "",
            "control_socket_disable": True,
            "logger_class": _ArbiterLog,
            "loglevel": "warning",
            "when_ready": hooks.when_ready,
            "pre_fork": hooks.pre_fork,
            "post_fork": hooks.post_fork,
            "child_exit": hooks.child_exit,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return _function(self.settings.app)(self.settings.extra)


class _ArbiterHooks:
    """What happens around a worker's fork, birth and death."""

    def __init__(self, settings: FrontendSettings) -> None:
        self._settings = settings
        self._forked_s: dict[int, float] = {}
        self._short_lives = 0

    def when_ready(self, arbiter: Any) -> None:
        arbiter.systemd = True  # else it unlinks the supervisor's unix sockets
        for ignored in _UNUSED_SIGNALS:
            signal.signal(ignored, signal.SIG_IGN)

    def pre_fork(self, arbiter: Any, worker: Any) -> None:
        """In the arbiter."""
        set_title(f"{self._settings.title_prefix}: frontend")
        taken = {sibling.number for sibling in arbiter.WORKERS.values()}
        worker.number = next(n for n in range(1, len(taken) + 2) if n not in taken)
        if worker.age > self._settings.workers:  # all booted once: never halt for one
            arbiter.WORKER_BOOT_ERROR = arbiter.APP_LOAD_ERROR = -1
        if self._short_lives:
            time.sleep(min(0.05 * 2**self._short_lives, _MAX_PAUSE_S))
        self._forked_s[worker.number] = time.monotonic()

    def post_fork(self, arbiter: Any, worker: Any) -> None:
        """In the worker."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # else it runs the arbiter's
        die_with_parent(arbiter.pid)
        worker.cfg.set("graceful_timeout", round(self._settings.graceful_timeout_s))
        os.environ[WORKER_NUMBER] = str(worker.number)
        set_title(f"{self._settings.title_prefix}: worker {worker.number}")

    def child_exit(self, _arbiter: Any, worker: Any) -> None:
        """In the arbiter."""
        lived_s = time.monotonic() - self._forked_s.pop(worker.number, 0.0)
        self._short_lives = self._short_lives + 1 if lived_s < _SHORT_LIFE_S else 0
        hook = self._settings.extra.get("child_exit")
        if hook:
            _function(hook)(worker.pid)


class _ArbiterLog(Logger):  # type: ignore[misc]
    """gunicorn's words, and asyncio's, as records of our journal."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        handler = _JournalHandler(Journal(cfg.prog))
        self.error_log.handlers = [handler]
        logging.getLogger("asyncio").handlers = [handler]


class _JournalHandler(logging.Handler):
    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        write: Callable[..., None] = self._journal.info
        if record.levelno >= logging.WARNING:
            write = self._journal.warning
        if record.levelno >= logging.ERROR:
            write = self._journal.error
        write(record.getMessage(), event="frontend", **_cause(record))


def _cause(record: logging.LogRecord) -> dict[str, str]:
    """The exception of a record on one line: its chain and where it was raised."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return {}
    return {"cause": " <- ".join(cause_chain(error)), "where": where(error)}


def _function(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function


def _raise_fd_limit() -> None:
    """The usual soft limit is 1024 for the sake of select(), which we don't use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
