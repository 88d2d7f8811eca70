"""How the supervisor gets device processes and conversion jobs: by fork or by exec.

Supervisor. Owns the zygote: starts it, asks it, starts another when it dies. A zygote
that finds itself unfit to fork is not asked again: exec takes over, slower and always
possible.

Invariant: every order is answered, by a pid or by a reason, within its deadline; a
zygote that doesn't answer is replaced.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import msgpack

from ipc.child import Child, Exit, Reaper, adopt, spawn
from ipc.journal import Journal
from ipc.keeper import Keeper
from ipc.launch import launch
from ipc.packet import PacketClosed, PacketTruncated, receive_packet, send_packet

Order = tuple[str, str, dict[str, Any]]
"""kind ("device" or "convert"), name, settings."""

_FORK_S = 10.0
"""For an answer of a zygote that has answered before: its imports are done."""


class ForkFailed(Exception):
    """No process came of the order."""


class Forker:
    """`fds` of an order stay the caller's."""

    def __init__(
        self,
        reaper: Reaper,
        journal: Journal,
        *,
        preload: str,
        use_zygote: bool,
        on_died: Callable[[Exit | OSError], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._journal = journal
        self._preload = preload
        self._use_zygote = use_zygote
        self._on_died = on_died
        self._sock: socket.socket | None = None
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._has_forked = False
        self._keeper = Keeper("zygote", self._launch, reaper, self._ended)

    @property
    def pid(self) -> int | None:
        return self._keeper.pid

    def start(self) -> None:
        if self._use_zygote:
            self._keeper.start()

    async def stop(self) -> None:
        """The zygote has nothing to finish."""
        if self._use_zygote:
            self._keeper.stop()
            await self._keeper.gone.wait()
        self._drop_socket()

    async def fork(self, order: Order, fds: tuple[int, ...], timeout_s: float) -> Child:
        """Raises ForkFailed."""
        if not self._use_zygote or self._sock is None:
            return self._exec(order, fds)
        answer: asyncio.Future[int] = self._loop.create_future()
        self._ask(order, fds, answer)
        patience_s = min(timeout_s, _FORK_S) if self._has_forked else timeout_s
        try:
            pid = await asyncio.wait_for(answer, patience_s)
            return adopt(order[1], pid)
        except TimeoutError as error:
            self._keeper.replace()
            self._drop_socket()  # until there is another, exec takes over
            raise ForkFailed("the zygote gave no answer in time") from error
        except ProcessLookupError as error:
            raise ForkFailed("it died at once") from error

    def _ask(
        self, order: Order, fds: tuple[int, ...], answer: asyncio.Future[int]
    ) -> None:
        assert self._sock is not None
        try:
            sent = send_packet(self._sock, msgpack.packb(list(order)), fds)
        except PacketClosed:
            sent = False
        if sent:
            self._waiting.append(answer)
        else:
            answer.set_exception(ForkFailed("the zygote is gone or doesn't read"))

    def _exec(self, order: Order, fds: tuple[int, ...]) -> Child:
        kind, name, settings = order
        keys = ("link_fd", "page_fd")[: len(fds)]
        told = {**settings, "job": kind, "name": name}
        told.update(zip(keys, fds, strict=True))
        environ = settings.get("environ", {})
        try:
            return launch(name, "neurond.device", told, fds=fds, environ=environ)
        except OSError as error:
            raise ForkFailed(str(error)) from error

    # ---- the zygote -----------------------------------------------------------------

    def _launch(self) -> Child:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._drop_socket()
        argv = [sys.executable, "-m", "neurond.zygote", "--preload", self._preload]
        try:
            child = spawn(
                "zygote",
                [*argv, "--fd", str(theirs.fileno())],
                fds=(theirs.fileno(),),
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._sock = ours
        self._has_forked = False
        self._loop.add_reader(ours, self._read)
        return child

    def _read(self) -> None:
        assert self._sock is not None
        try:
            received = receive_packet(self._sock)
        except (PacketClosed, PacketTruncated):
            self._drop_socket()
            return
        if received is not None and self._waiting:
            self._answer(self._waiting.popleft(), *msgpack.unpackb(received[0]))

    def _answer(self, waiting: asyncio.Future[int], word: str, content: Any) -> None:
        if word == "error":
            self._journal.error("the zygote can't fork any more", cause=str(content))
            self._use_zygote = False
            self._keeper.stop()
            if not waiting.done():
                waiting.set_exception(ForkFailed(str(content)))
            return
        self._has_forked = True
        if not waiting.done():
            waiting.set_result(content)

    def _ended(self, _keeper: Keeper, end: Exit | OSError) -> None:
        self._drop_socket()
        self._on_died(end)

    def _drop_socket(self) -> None:
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(ForkFailed("the zygote died"))
