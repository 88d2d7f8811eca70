"""A child process that dies by SIGKILL, at a moment or at a bytecode of our choice.

Bytecodes make a drill meet every point inside a few lines of code; a timer would almost
always hit a system call.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any


class Victim:
    """A forked child that ends in SIGKILL, by our hand or by its own."""

    def __init__(
        self,
        act: Callable[[], None],
        *,
        module: ModuleType,
        die_after_bytecodes: int = 0,
    ) -> None:
        self._pid = os.fork()
        if self._pid == 0:
            if die_after_bytecodes:
                sys.settrace(_suicide_after(die_after_bytecodes, module.__file__))
            act()
            os._exit(0)
        self.pidfd = os.pidfd_open(self._pid)

    @property
    def alive(self) -> bool:
        return not select.select([self.pidfd], [], [], 0)[0]

    def kill(self) -> None:
        """Kill it, unless it is dead already, and reap it."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self.pidfd)


def _suicide_after(count: int, path: str | None) -> Callable[..., Any]:
    """A tracer that counts bytecodes of one file and kills the process at the last."""
    left = count

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        nonlocal left
        if frame.f_code.co_filename != path:
            return None
        frame.f_trace_opcodes = True
        left -= event == "opcode"
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace
