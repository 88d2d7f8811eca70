"""Connections to one node, kept alive between exchanges.

Gateway worker (one pool per node) and fleet. `request` returns an answer whose head has
come; its owner reads it and must release it, on every way out.

Invariant: a connection is in use by one answer, idle here, or closed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from cortexd.nodes.endpoint import Endpoint
from cortexd.nodes.http import Connection, Lost, Silent, Unreachable

T = TypeVar("T")

_MAX_IDLE = 128
_SLICE_S = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """`headers` are ours alone: nothing of a client's gets into them unchecked."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long silence may last: `idle_s`, or as long as `goes_on` says.

    It is asked after each slice of silence, with the seconds that it has lasted, so
    that a node which hangs is given up as soon as it is known to.
    """

    idle_s: float
    goes_on: Callable[[float], bool] | None = None

    def lasts(self, silent_s: float) -> bool:
        return self.goes_on(silent_s) if self.goes_on else silent_s < self.idle_s

    def slice_s(self, silent_s: float) -> float:
        """How long to wait before it is asked again."""
        left_s = self.idle_s - silent_s
        return min(_SLICE_S, left_s) if left_s > 0 else min(_SLICE_S, self.idle_s)


class Answer:
    """An exchange in progress."""

    def __init__(self, pool: Pool, connection: Connection, patience: Patience) -> None:
        self._pool = pool
        self._connection: Connection | None = connection
        self._patience = patience

    async def head(self) -> None:
        """Raises Lost, Silent."""
        await self._patiently(self._used.head)

    async def read(self) -> bytes:
        """What has come of the body; b"" at the end. Raises Lost, Silent."""
        return await self._patiently(self._used.read)

    async def _patiently(self, wait: Callable[..., Awaitable[T]]) -> T:
        """Raises Lost, Silent."""
        silent_s = 0.0
        while True:
            slice_s = self._patience.slice_s(silent_s)
            try:
                return await wait(idle_s=slice_s)
            except Silent:
                silent_s += slice_s
                if not self._patience.lasts(silent_s):
                    raise

    async def read_all(self, limit_bytes: int) -> bytes:
        """The whole body. Raises Lost (also over the limit), Silent."""
        chunks: list[bytes] = []
        size_bytes = 0
        while chunk := await self.read():
            chunks.append(chunk)
            size_bytes += len(chunk)
            if size_bytes > limit_bytes:
                raise Lost(f"the answer is over {limit_bytes} bytes")
        return b"".join(chunks)

    @property
    def status(self) -> int:
        return self._used.status

    def header(self, name: bytes) -> str:
        return self._used.headers.get(name, b"").decode("latin-1")

    def release(self) -> None:
        """Give the connection back, or close it if the answer isn't read to its end."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.take_back(connection)

    @property
    def _used(self) -> Connection:
        if self._connection is None:
            raise Lost("the answer was released")
        return self._connection


class Pool:
    """`close` ends everything: what is in progress ends with Lost."""

    def __init__(
        self, endpoint: Endpoint, *, token: str = "", connect_timeout_s: float
    ) -> None:
        self.endpoint = endpoint
        self._connect_timeout_s = connect_timeout_s
        self._idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()
        auth = f"Authorization: Bearer {token}\r\n" if token else ""
        self._common = f"Host: {endpoint.authority}\r\n{auth}"

    async def request(self, request: Request, patience: Patience) -> Answer:
        """Send it and wait for the head of the answer. Raises NodeError.

        A kept connection may be closed by the node at the very moment that it is used:
        if it dies before a byte came back, the request goes out on a new one.
        """
        data = self._encode(request)
        kept = self._kept()
        if kept is not None:
            try:
                return await self._exchange(kept, data, patience)
            except Lost:
                if kept.has_answered:
                    raise
        return await self._exchange(await self._connect(), data, patience)

    def take_back(self, connection: Connection) -> None:
        """For an answer that is released."""
        self._busy.discard(connection)
        if not connection.release():
            return
        if len(self._idle) < _MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.abort()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().abort()
        for connection in self._busy:
            connection.abort()

    @property
    def in_flight(self) -> int:
        """Answers that are not released."""
        return len(self._busy)

    def _kept(self) -> Connection | None:
        """The connection used last: the least likely to be closed by now."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        endpoint = self.endpoint
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop), endpoint.host, endpoint.port
                )
        except (OSError, TimeoutError) as error:
            raise Unreachable(f"can't connect to {endpoint}") from error
        return connection

    async def _exchange(
        self, connection: Connection, data: bytes, patience: Patience
    ) -> Answer:
        self._busy.add(connection)
        answer = Answer(self, connection, patience)
        connection.send(data)
        try:
            await answer.head()
        except BaseException:  # cancelled included: nothing may stay in use
            answer.release()
            raise
        return answer

    def _encode(self, request: Request) -> bytes:
        lines = [f"{name}: {value}\r\n" for name, value in request.headers]
        if request.body or request.method == "POST":
            lines.append(f"Content-Length: {len(request.body)}\r\n")
        head = f"{request.method} {request.path} HTTP/1.1\r\n{self._common}"
        return "".join([head, *lines, "\r\n"]).encode("latin-1") + request.body
