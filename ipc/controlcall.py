"""control.sock for a command line: ask, or follow, and wait.

Used by cortexctl and by metrics processes. Blocking sockets and no event loop: to
import asyncio costs more than the whole question.

Invariant: every wait ends at its deadline.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ipc.controlwire import SUBSCRIBE, ControlClosed, answer_of, event_of
from ipc.frames import FrameError, FrameReader, pack_frame
from ipc.unixsocket import connect_unix

_CHUNK_BYTES = 256 << 10
_FIRST_ANSWER_S = 5.0


def call(
    path: str | os.PathLike[str],
    op: str,
    args: Mapping[str, Any] | None = None,
    *,
    timeout_s: float,
) -> dict[str, Any]:
    """One request and its answer, all within `timeout_s`.

    Raises OSError when nobody listens or the file may not be opened, TimeoutError, the
    ServiceError that the daemon raised, ControlClosed.
    """
    deadline_s = time.monotonic() + timeout_s
    with _open(path, timeout_s) as connection:
        connection.ask(op, dict(args or {}), deadline_s)
        return answer_of(connection.read(deadline_s))


def follow(
    path: str | os.PathLike[str],
    topics: Sequence[str],
    *,
    timeout_s: float | None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Topic and data, current values first, until the daemon goes (ControlClosed).

    `timeout_s` is the longest silence between events (None: any); TimeoutError ends it.
    The subscription itself may take 5 s.
    """
    with _open(path, _FIRST_ANSWER_S) as connection:
        deadline_s = time.monotonic() + _FIRST_ANSWER_S
        connection.ask(SUBSCRIBE, {"topics": list(topics)}, deadline_s)
        answer_of(connection.read(deadline_s))
        while True:
            until_s = None if timeout_s is None else time.monotonic() + timeout_s
            event = event_of(connection.read(until_s))
            if event is not None:
                yield event


class _Connection:
    """A connected socket and the frames that came in."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = FrameReader()
        self._frames: list[dict[str, Any]] = []

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._sock.close()

    def ask(self, op: str, args: dict[str, Any], deadline_s: float) -> None:
        frame = pack_frame({"id": 1, "op": op, "args": args})
        self._sock.settimeout(_left_s(deadline_s))
        try:
            self._sock.sendall(frame)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have answered before it closed: read() will tell

    def read(self, deadline_s: float | None) -> dict[str, Any]:
        """The next frame. Raises TimeoutError, ControlClosed."""
        while not self._frames:
            left_s = None if deadline_s is None else _left_s(deadline_s)
            self._sock.settimeout(left_s)
            self._fill()
        return self._frames.pop(0)

    def _fill(self) -> None:
        try:
            data = self._sock.recv(_CHUNK_BYTES)
            if not data:
                raise ControlClosed("the daemon closed the connection")
            self._frames += self._reader.feed(data)
        except ConnectionResetError as error:
            raise ControlClosed("the daemon closed the connection") from error
        except FrameError as error:
            raise ControlClosed("the daemon sent what is no frame") from error


def _open(path: str | os.PathLike[str], timeout_s: float) -> _Connection:
    sock = connect_unix(Path(path), socket.SOCK_STREAM, timeout_s=timeout_s)
    return _Connection(sock)


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("no answer in time")
    return left_s
