"""One HTTP worker: gunicorn's native ASGI worker with the limits it lacks.

Runs in a front-end worker process, forked by the arbiter of ipc.frontend. Added here:

    no byte yet, or idle after an answer    closed after keep_alive_s
    header block begun, not ended           408 after header_deadline_s, from the first
                                            byte on, however often a byte arrives
    header block over 64 KiB, 100 fields    431;  long request line: 414 (gunicorn's)
    more connections than max_connections   503
    client that reads nothing of what is    cut off after write_stall_s
    buffered for it, also after our close
    client that ends its side in mid-body   the app reads a disconnect and may answer
    client that ends it after the body      has left: closed
    SIGTERM                                 idle connections close at once, requests
                                            in flight have graceful_timeout_s

Invariant: every connection has a timer running, or a request being served to a client
that reads.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
from http import HTTPStatus
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.asgi.lifespan import LifespanManager
from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers.gasgi import ASGIWorker

from ipc.errors import TABLE

_MAX_HEADER_BLOCK_BYTES = 64 << 10
_HEARTBEAT_S = 1.0
_CODES = {500: "internal_error", 503: "overloaded"}


class HttpProtocol(ASGIProtocol):  # type: ignore[misc]
    """One connection. The names with an underscore are gunicorn's own."""

    def __init__(self, worker: HttpWorker) -> None:
        super().__init__(worker)
        self._limits = worker.app.settings
        self._keepalive = self._limits.keep_alive_s  # gunicorn's takes whole seconds
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.worker.connections.add(self)
        self._arm_keepalive_timer()
        if len(self.worker.connections) > self._limits.max_connections:
            self._refuse(503, "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self.worker.connections.discard(self)
        self._stop_header_timer()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def eof_received(self) -> bool:
        """Whether to stay open: for the answer to a body that was cut off.

        A client that has asked all and ends its side waits for nothing more (S09).
        """
        body = self._body_receiver
        if self._current_request is None or body is None or body._complete:
            return False
        body._body_wait_expired = True  # as after too long a silence
        body._wake_waiter()
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_unsent()

    def resume_writing(self) -> None:
        self._stop_stall_timer()
        super().resume_writing()

    def _close_transport(self) -> None:
        super()._close_transport()
        self._watch_unsent()  # the end waits until all of it is sent

    def _watch_unsent(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent and self._stall_timer is None:
            self._stall_timer = self.worker.loop.call_later(
                self._limits.write_stall_s, self._look_at_unsent, unsent
            )

    def _look_at_unsent(self, unsent_before: int) -> None:
        self._stall_timer = None
        if self.transport.get_write_buffer_size() < unsent_before:
            self._watch_unsent()
        else:
            self.transport.abort()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def close_if_idle(self) -> None:
        """For a drain: nobody waits for an answer on this connection."""
        if self._current_request is None and not self._finishing_calls:
            self._keepalive_timeout()

    def _feed_callback_parser(self, data: bytes) -> bool:
        """Also called with what was pipelined behind the request before."""
        is_open: bool = super()._feed_callback_parser(data)
        if is_open and self._current_request is None:
            self._await_rest_of_header(len(data))
        return is_open

    def _await_rest_of_header(self, num_bytes: int) -> None:
        self._cancel_keepalive_timer()
        self._header_bytes += num_bytes
        if self._header_bytes > _MAX_HEADER_BLOCK_BYTES:
            self._refuse(431, "the header block is too large")
        elif self._header_timer is None:
            self._header_timer = self.worker.loop.call_later(
                self._limits.header_deadline_s, self._header_expired
            )

    def _on_headers_complete(self) -> Any:
        self._stop_header_timer()
        return super()._on_headers_complete()

    def _arm_keepalive_timer(self) -> None:
        if self._header_timer is None:
            super()._arm_keepalive_timer()

    def _stop_header_timer(self) -> None:
        self._header_bytes = 0
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _header_expired(self) -> None:
        self._refuse(408, "the request header did not arrive in time")

    def _refuse(self, status: int, message: str) -> None:
        self._send_error_response(status, message)
        self._keepalive_timeout()  # closes, and wakes the loop that awaits a request

    def _send_error_response(
        self, status: int, message: str, extra_headers: tuple[Any, ...] = ()
    ) -> None:
        """As gunicorn's, with a body that clients of the API can read."""
        row = TABLE[_CODES.get(status, "invalid_request_error")]
        request_id = f"req_{secrets.token_hex(12)}"
        error = {
            "message": message,
            "type": row.openai_type,
            "param": None,
            "code": row.code,
            "request_id": request_id,
        }
        body = json.dumps({"error": error}).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
            ("x-request-id", request_id),
            *([("retry-after", str(row.retry_after_s))] if row.retry_after_s else []),
            *extra_headers,
        ]
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers]
        self._safe_write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


class HttpWorker(ASGIWorker):  # type: ignore[misc]
    """One worker process: serves until SIGTERM, then drains."""

    number = 0
    """1..N, the same again for a replacement."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connections: set[HttpProtocol] = set()
        self._stopping = asyncio.Event()

    def init_signals(self) -> None:
        """Until there is something to drain, an order to stop ends the process.

        A terminal's SIGINT and SIGHUP reach everybody; our orders are SIGTERM and, when
        the loop is blocked, the arbiter's SIGABRT.
        """
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(ignored, signal.SIG_IGN)

    def handle_exit_signal(self) -> None:
        super().handle_exit_signal()
        self._stopping.set()

    def handle_quit_signal(self) -> None:
        super().handle_quit_signal()
        self._stopping.set()

    async def _serve(self) -> None:
        """Instead of gunicorn's: our protocol, full backlog, no second to notice."""
        await self._start_app()
        for listener in self.sockets:
            server = await self.loop.create_server(
                lambda: HttpProtocol(self), sock=listener.sock, backlog=self.cfg.backlog
            )
            self.servers.append(server)
        self.loop.add_signal_handler(signal.SIGTERM, self.handle_exit_signal)
        self.loop.add_signal_handler(signal.SIGQUIT, self.handle_quit_signal)
        while self.alive and os.getppid() == self.ppid:
            self.notify()
            try:
                await asyncio.wait_for(self._stopping.wait(), _HEARTBEAT_S)
            except TimeoutError:
                continue
        await self._shutdown()

    async def _start_app(self) -> None:
        self.lifespan = LifespanManager(self.asgi, self.log, self.state)
        try:
            await self.lifespan.startup()
        except RuntimeError as error:
            self.log.error("start-up failed: %s", error)
            raise SystemExit(Arbiter.WORKER_BOOT_ERROR) from error

    async def _shutdown(self) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.connections):
            connection.close_if_idle()
        await super()._shutdown()
