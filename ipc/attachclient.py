"""attach.sock, the worker's side: a lease on the devices, and the rings as they come.

Used by each front-end worker, after its fork, in its own loop (protocol:
`ipc.attachwire`). `on_pair` owns the descriptors it gets.

Invariant: the supervisor's death is seen as `on_lost`, once; after it, and after
`close`, no callback comes.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipc.attachwire import (
    ATTACH,
    PROTOCOL,
    Down,
    Hello,
    Pair,
    Quarantine,
    Refused,
    Welcome,
)
from ipc.codec import MessageError
from ipc.errors import PeerLost, ServiceError, from_wire
from ipc.packet import (
    PacketClosed,
    PacketTruncated,
    close_fds,
    receive_packet,
    send_packet,
)
from ipc.pair import PairFds
from ipc.unixsocket import try_connect_unix

_CONNECT_POLL_S = 0.01
_PER_TURN = 16
_NUM_PAIR_FDS = 5

Suspects = tuple[tuple[int, int], ...]
"""(request id, trial group) of each."""
Convicted = tuple[int, ...]


def _refusal(wire: list[Any]) -> ServiceError:
    try:
        return from_wire(wire)
    except (ValueError, TypeError):
        return PeerLost("the supervisor refused with an error that makes no sense")


class AttachClient:
    """One worker's lease. Owns its socket."""

    def __init__(  # noqa: PLR0913  who we are, and whom to tell
        self,
        path: Path,
        *,
        role: str,
        name: str,
        build: str,
        on_pair: Callable[[str, int, PairFds], None],
        on_down: Callable[[str, int, str, Suspects, Convicted], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._path = Path(path)
        self._hello = Hello(PROTOCOL, build, role, name)
        self._on_pair = on_pair
        self._on_down = on_down
        self._on_lost = on_lost
        self._sock: socket.socket | None = None
        self.worker = 0

    async def connect(self, timeout_s: float) -> None:
        """Attach. Pairs may arrive, by callback, before this returns.

        Raises OSError when nobody listens (TimeoutError when nobody answers), the
        ServiceError of a refusal, PeerLost when the supervisor went meanwhile.
        """
        self._loop = asyncio.get_running_loop()
        self._welcome: asyncio.Future[int] = self._loop.create_future()
        try:
            async with asyncio.timeout(timeout_s):
                self._sock = await self._open()
                self._loop.add_reader(self._sock, self._read)
                self.worker = await self._welcome
        except BaseException:
            self.close()
            raise

    def quarantine(self, fingerprint: str, model: str) -> None:
        """Tell the supervisor what the request was that it convicted.

        Lost when the lease is over or the supervisor doesn't read.
        """
        if self._sock is not None and self._welcome.done():
            try:
                send_packet(self._sock, ATTACH.encode(Quarantine(fingerprint, model)))
            except PacketClosed:
                pass  # EOF is on its way to us

    def close(self) -> None:
        """End the lease; `on_lost` is not called."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock)
            sock.close()

    async def _open(self) -> socket.socket:
        """A socket whose Hello is on its way."""
        kind = socket.SOCK_SEQPACKET
        while (sock := try_connect_unix(self._path, kind)) is None:
            await asyncio.sleep(_CONNECT_POLL_S)
        try:
            send_packet(sock, ATTACH.encode(self._hello))
        except PacketClosed:
            sock.close()
            raise ConnectionResetError(errno.ECONNRESET, "closed at once") from None
        return sock

    def _read(self) -> None:
        """Some records; the rest at the loop's next turn."""
        try:
            for _ in range(_PER_TURN):
                if self._sock is None or not self._take(self._sock):
                    return
        except (PacketClosed, PacketTruncated, MessageError) as error:
            self._lose(error)

    def _take(self, sock: socket.socket) -> bool:
        received = receive_packet(sock)
        if received is None:
            return False
        record, fds = received
        try:
            message = ATTACH.decode(record)
            self._check(message, fds)
        except MessageError:
            close_fds(fds)
            raise
        self._obey(message, fds)
        return True

    def _check(self, message: object, fds: list[int]) -> None:
        """Raises MessageError: the supervisor doesn't say this, or not now."""
        greeting = isinstance(message, Welcome | Refused)
        if greeting == self._welcome.done() or isinstance(message, Hello | Quarantine):
            raise MessageError(f"{type(message).__name__} is not expected here")
        if len(fds) != (_NUM_PAIR_FDS if isinstance(message, Pair) else 0):
            raise MessageError(f"{type(message).__name__} with {len(fds)} descriptors")

    def _obey(self, message: object, fds: list[int]) -> None:
        match message:
            case Welcome(worker=worker):
                self._welcome.set_result(worker)
            case Refused(error=error):
                self._welcome.set_exception(_refusal(error))
                self.close()
            case Pair(device=device, generation=generation):
                self._on_pair(device, generation, PairFds(*fds))
            case Down():
                self._on_down(
                    message.device,
                    message.generation,
                    message.reason,
                    message.suspects,
                    message.convicted,
                )
            case _:
                raise AssertionError(f"{message} passed the check")

    def _lose(self, cause: Exception) -> None:
        """Before the welcome it is connect() that hears of it."""
        self.close()
        if self._welcome.done():
            self._on_lost()
            return
        lost = PeerLost("the supervisor closed the connection")
        lost.__cause__ = cause
        self._welcome.set_exception(lost)
