"""One daemon under `cortex run`: started, its lines read, stopped, its end reported.

Owned by the event loop of `cortex run`. The daemon has a session of its own, so that
Ctrl-C reaches only us and we stop the two in order; it gets SIGTERM when we die.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence

from ipc.child import Exit, die_with_parent

_READ_BYTES = 1 << 16


class Daemon:
    """`exited` resolves with the exit; `last_line` is what it said last."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        environ: Mapping[str, str],
        *,
        on_line: Callable[[str, str], None],
    ) -> None:
        self.name = name
        self.last_line = ""
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._on_line = on_line
        self._rest = b""
        parent_pid = os.getpid()
        self._process = subprocess.Popen(
            argv,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # one thread only, so Python may run between fork and exec
            preexec_fn=lambda: die_with_parent(parent_pid, signal.SIGTERM),
        )
        self._watch()

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the process has ended."""
        if not self.exited.done():
            self._process.send_signal(number)

    async def stop(self, timeout_s: float) -> Exit:
        """SIGTERM, and SIGKILL when that took too long."""
        self.signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(asyncio.shield(self.exited), timeout_s)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            return await asyncio.shield(self.exited)

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()
        os.set_blocking(self._pipe, False)
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pipe, self._read)
        loop.add_reader(self._pidfd, self._reap)

    def _read(self) -> bool:
        """Pass on whole lines; False when there is nothing to read now."""
        try:
            data = os.read(self._pipe, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            asyncio.get_running_loop().remove_reader(self._pipe)
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._pass_on(line)
        return True

    def _pass_on(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        if text.strip():
            self.last_line = text.strip()
        self._on_line(self.name, text)

    def _reap(self) -> None:
        """The process ended: its last words first, then its exit."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        while self._read():
            pass
        if self._rest:
            self._pass_on(self._rest)
        loop.remove_reader(self._pipe)
        assert self._process.stdout is not None
        self._process.stdout.close()
        status = self._process.wait()
        self.exited.set_result(
            Exit(status, None) if status >= 0 else Exit(None, -status)
        )
