"""Memory barriers between the two processes of a ring, by Linux's membarrier.

Used by every process that holds an end of a ring. A barrier is asked for by one side
only, the slow one, and the kernel runs it on every running thread of each registered
process as well: the fast side pays nothing, not even an instruction.

Strong machines (x86-64) keep stores in order and loads in order; the one pair left is
"store, then load" in the handshake before sleep. Weak machines (aarch64) also reorder
a record and the head that publishes it, so a side that sees its peer's index move asks
for a barrier before it touches the bytes that the index speaks of.

Invariant: registration survives fork, not exec, so each end registers when it opens.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

_GLOBAL_EXPEDITED = 2
_REGISTER_GLOBAL_EXPEDITED = 4
_CALL_NUMBERS = {"x86_64": 324, "aarch64": 283}
_STRONG = frozenset({"x86_64"})

# A 32-bit Python has other call numbers and no single store of 8 bytes.
_ARCHITECTURE = os.uname().machine if sys.maxsize > 2**32 else "a 32-bit process"
_CALL_NUMBER = _CALL_NUMBERS.get(_ARCHITECTURE, -1)
_syscall = ctypes.CDLL(None).syscall


class UnsupportedMachine(Exception):
    """Nothing is known about this machine's memory order, or it has no membarrier."""


def register() -> bool:
    """Let other processes' barriers reach this one. False: the kernel refused."""
    return bool(_syscall(_CALL_NUMBER, _REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0)


def barrier() -> bool:
    """A full barrier here and in every registered process. False: there was none."""
    return bool(_syscall(_CALL_NUMBER, _GLOBAL_EXPEDITED, 0, 0) == 0)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a ring must know of the processor, and its two calls."""

    strong: bool
    register: Callable[[], bool] = register
    barrier: Callable[[], bool] = barrier

    def fenced(self) -> bool:
        """Register, and try a barrier. False: a ring must ring its bell always."""
        works = self.register() and self.barrier()
        if not works and not self.strong:
            raise UnsupportedMachine("membarrier is refused and memory order is weak")
        return works


def machine(architecture: str = _ARCHITECTURE) -> Machine:
    """The machine that we run on. Raises UnsupportedMachine."""
    if architecture not in _CALL_NUMBERS:
        raise UnsupportedMachine(f"unknown memory order of {architecture!r}")
    return Machine(strong=architecture in _STRONG)
