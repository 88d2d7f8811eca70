"""control.sock, the daemon's side: operators ask and order, workers follow the facts.

Lives in the supervisor's loop (protocol: `ipc.controlwire`). Requests of one connection
run beside each other, each in a task of its own. A request goes on when its client has
left: what was ordered is done, only nobody hears of it.

Invariant: every request gets one answer. What one client sends, or doesn't read, ends
that client's connection at most; nobody's slowness is anyone's memory: a connection
holds a bounded backlog and a bounded number of requests.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from ipc.acceptor import Acceptor
from ipc.controlwire import SUBSCRIBE
from ipc.errors import HostError, ServiceError, cause_chain, error_for
from ipc.frames import FrameError, FrameReader, pack_frame
from ipc.peer import Peer

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, BaseTransport, Protocol, Task, Transport
else:
    Protocol = object  # one by shape: a command line imports this module too

Facts = dict[str, Any]
Handler = Callable[[Facts, Peer], Awaitable[Facts]]
Topics = Mapping[str, Callable[[], Facts] | None]

BACKLOG_BYTES = 4 << 20
"""Unread bytes at which a client is dropped."""
_MAX_CONNECTIONS = 512
_FLUSH_S = 5.0
_MAX_RUNNING = 256
"""Requests of one connection; more are refused."""


class ControlServer:
    """Owns the listener, the connections and who follows what.

    `topics` names what can be subscribed to, each with the function that gives its
    current value, or None for topics that are events only.
    """

    def __init__(
        self,
        listener: socket.socket,
        handlers: Mapping[str, Handler],
        *,
        authorize: Callable[[Peer], bool],
        topics: Topics,
        backlog_bytes: int = BACKLOG_BYTES,
    ) -> None:
        self._acceptor = Acceptor(listener, self._add)
        self.handlers = handlers
        self.topics = topics
        self.backlog_bytes = backlog_bytes
        self._authorize = authorize
        self.connections: set[_Connection] = set()
        self._tasks: set[Task[Any]] = set()

    def start(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self._acceptor.start(loop)

    def publish(self, topic: str, data: Facts) -> None:
        """Tell everyone who follows the topic; never waits."""
        followers = [c for c in self.connections if topic in c.topics]
        if followers:
            frame = pack_frame({"topic": topic, "data": data})
            for connection in followers:
                connection.write(frame)

    def close(self) -> None:
        """Answers that are written still go out; requests that run are cancelled."""
        self._acceptor.close()
        for task in list(self._tasks):
            task.cancel()
        for connection in list(self.connections):
            connection.close()

    def spawn(self, work: Any) -> None:
        """Run a coroutine; the loop itself holds its tasks only weakly."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _add(self, sock: socket.socket, peer: Peer) -> None:
        if len(self.connections) >= _MAX_CONNECTIONS:
            sock.close()
            return
        allowed = self._authorize(peer)
        connection = _Connection(self, peer, allowed=allowed)
        self.connections.add(connection)
        if not allowed:  # it may hear why, but not keep a place
            self.loop.call_later(_FLUSH_S, connection.close)
        self.spawn(self._connect(connection, sock))

    async def _connect(self, connection: _Connection, sock: socket.socket) -> None:
        try:
            await self.loop.connect_accepted_socket(lambda: connection, sock)
        except BaseException:  # also when we are closed first
            self.connections.discard(connection)
            sock.close()
            raise


class _Connection(Protocol):
    """One client."""

    def __init__(self, server: ControlServer, peer: Peer, *, allowed: bool) -> None:
        self.topics: set[str] = set()
        self._server = server
        self._peer = peer
        self._allowed = allowed
        self._reader = FrameReader()
        self._transport: Transport | None = None
        self._closing = False
        self._num_running = 0

    # -- called by the transport

    def connection_made(self, transport: BaseTransport) -> None:
        self._transport = cast("Transport", transport)
        if self._closing:
            self.close()

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self._server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._take(frame)
        except FrameError as error:
            refusal = error_for("invalid_request_error", str(error))
            self._answer(None, "error", refusal.to_wire())
            self.close()

    def eof_received(self) -> bool:
        return False  # close: a client that half-closes has gone

    def pause_writing(self) -> None:
        pass  # write() watches the backlog by itself

    def resume_writing(self) -> None:
        pass

    # -- requests

    def _take(self, frame: Facts) -> None:
        number, op, args = frame.get("id"), frame.get("op"), frame.get("args", {})
        try:
            work = self._find(op, args)
        except ServiceError as error:
            self._answer(number, "error", error.to_wire())
            if not self._allowed:
                self.close()
            return
        if work is None:
            self._answer(number, "ok", {})
            self._follow(args["topics"])
        else:
            self._num_running += 1
            self._server.spawn(self._run(number, work, args))

    def _find(self, op: Any, args: Any) -> Handler | None:
        """Who does it; None = subscribe. Raises ServiceError."""
        if not self._allowed:
            who = f"uid {self._peer.uid}"
            raise error_for("insufficient_permissions", f"{who} may not control this")
        if not isinstance(op, str) or not isinstance(args, dict):
            raise error_for("invalid_request_error", "a request is {id, op, args}")
        if op == SUBSCRIBE:
            self._check_topics(args.get("topics"))
            return None
        handler = self._server.handlers.get(op)
        if handler is None:
            raise error_for("not_found", f"there is no operation {op[:64]!r}")
        if self._num_running >= _MAX_RUNNING:
            raise error_for("overloaded", f"{_MAX_RUNNING} requests run already")
        return handler

    def _check_topics(self, topics: Any) -> None:
        if not isinstance(topics, list):
            raise error_for("invalid_request_error", "topics: must be a list")
        for topic in topics:
            if not isinstance(topic, str) or topic not in self._server.topics:
                raise error_for("not_found", f"there is no topic {topic!r:.64}")

    def _follow(self, topics: list[str]) -> None:
        for topic in dict.fromkeys(topics):  # each costs its whole value
            self.topics.add(topic)
            current = self._server.topics[topic]
            if current is not None:
                self.write(pack_frame({"topic": topic, "data": current()}))

    async def _run(self, number: Any, handler: Handler, args: Facts) -> None:
        try:
            answer = pack_frame({"id": number, "ok": await handler(args, self._peer)})
        except ServiceError as error:
            answer = self._error_frame(number, error)
        except Exception as error:  # the resource border: a bug of ours, and answered
            self._report(error)
            chain = cause_chain(error)
            hidden = HostError("the operation failed by a bug of ours", chain=chain)
            answer = self._error_frame(number, hidden)
        finally:
            self._num_running -= 1
        self.write(answer)

    def _report(self, error: Exception) -> None:
        self._server.loop.call_exception_handler(
            {"message": "control operation failed", "exception": error}
        )

    # -- answers

    def _answer(self, number: Any, kind: str, content: Any) -> None:
        self.write(pack_frame({"id": number, kind: content}))

    def _error_frame(self, number: Any, error: ServiceError) -> bytes:
        return pack_frame({"id": number, "error": error.to_wire()})

    def write(self, frame: bytes) -> None:
        """Send, or drop the client when it has too much unread already."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > self._server.backlog_bytes:
            self._transport.abort()
        else:
            self._transport.write(frame)

    def close(self) -> None:
        """Close behind what is written; a client that doesn't read it is cut off."""
        self._closing = True
        if self._transport is not None:
            self._transport.close()
            self._server.loop.call_later(_FLUSH_S, self._transport.abort)
