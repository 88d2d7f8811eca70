"""One life of a device: its process, its link and its status page.

Supervisor. Made by a device slot for each generation and dropped with it, so that
nothing of a past life can be taken for the present one: whatever arrives late names the
process that it came from.

Invariant: `on_exit` is called once, by the pidfd, also for a process that was given up.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ipc.child import Child, Exit, Reaper
from ipc.link import LinkClosed, LinkFull, create_link
from ipc.messages import LinkDown, LinkUp, MessageError
from ipc.status import PageView, StatusReader, create_page
from neurond.forker import Forker, Order

_SEND_TIMEOUT_S = 0.05


@dataclass(frozen=True, slots=True)
class Listener:
    """Whom a process tells; each call names the process."""

    on_message: Callable[[DeviceProcess, LinkUp], None]
    on_nonsense: Callable[[DeviceProcess, str], None]
    on_exit: Callable[[DeviceProcess, Exit], None]


class DeviceProcess:
    def __init__(self, reaper: Reaper, listener: Listener) -> None:
        self._reaper = reaper
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._link, self._theirs = create_link()
        self._page_fd = create_page()
        self._reader = StatusReader(self._page_fd)
        self._child: Child | None = None
        self._is_closed = False
        self._is_killed = False

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    async def start(self, forker: Forker, order: Order, timeout_s: float) -> None:
        """Raises ForkFailed."""
        fds = (self._theirs.fileno(), self._page_fd)
        try:
            child = await forker.fork(order, fds, timeout_s)
        finally:
            self._theirs.close()
        self._child = child
        self._reaper.watch(child, self._exited)
        if self._is_closed or self._is_killed:  # given up while it was forked
            child.kill()
        if not self._is_closed:
            self._loop.add_reader(self._link.fileno(), self.read)

    def view(self) -> PageView:
        return self._reader.read()

    def send(self, message: LinkDown, fds: tuple[int, ...] = ()) -> bool:
        """False: it doesn't read. A dead one takes everything."""
        try:
            self._link.send(message, fds, timeout_s=_SEND_TIMEOUT_S)
        except LinkClosed:
            pass  # its exit is on the way to us
        except LinkFull:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL; one that is still being forked dies as soon as it is there."""
        self._is_killed = True
        if self._child is not None:
            self._child.kill()

    def read(self) -> None:
        """Everything that has come; EOF is left to the pidfd."""
        while not self._is_closed:
            try:
                received = self._link.receive()
            except LinkClosed:
                self._loop.remove_reader(self._link.fileno())
                return
            except MessageError as error:
                self._listener.on_nonsense(self, str(error))
                return
            if received is None:
                return
            message, fds = received
            for fd in fds:
                os.close(fd)  # a device has none to give
            self._listener.on_message(self, message)  # type: ignore[arg-type]  # up

    def close(self) -> PageView:
        """Let go of link and page; what the page said last. The process may live on."""
        last = self.view()
        self._is_closed = True
        self._loop.remove_reader(self._link.fileno())
        self._link.close()
        self._reader.close()
        os.close(self._page_fd)
        return last

    def _exited(self, _child: Child, end: Exit) -> None:
        self._listener.on_exit(self, end)


def fault_fact(
    name: str, chain: tuple[str, ...], kind: str = "device"
) -> dict[str, Any]:
    """How a life ended, as the facts show it; without last words, how it exited."""
    now_s = time.time()
    return {"class": kind, "type": name, "chain": list(chain), "time_s": now_s}
