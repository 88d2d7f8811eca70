"""Compiles grammars in processes that are ended when one of them runs away.

Front-end worker, on its helper threads. A process is started at the first grammar and
kept for the next ones; at most `most` of them exist.

Invariant: whatever a grammar does to its compiler, the caller has an answer in time and
this process neither grows nor ends.
"""

from __future__ import annotations

import os
import selectors
import struct
import subprocess
import sys
import threading
import time
from typing import Final

from ipc.errors import error_for

START_S: Final = 5.0
LENGTH: Final = struct.Struct("<I")


class Compilers:
    def __init__(self, most: int) -> None:
        self._places = threading.BoundedSemaphore(most)
        self._idle: list[_Compiler] = []

    def verdict(self, grammar: str, seconds: float) -> str:
        """Empty, or why the grammar can't be used. Raises CapacityError overloaded."""
        if not self._places.acquire(timeout=seconds):
            raise error_for("overloaded", "other grammars are still being compiled")
        try:
            return self._ask(grammar, seconds)
        finally:
            self._places.release()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().end()

    def _ask(self, grammar: str, seconds: float) -> str:
        compiler = self._take()
        try:
            answer = compiler.ask(grammar.encode(), seconds)
        except TimeoutError:
            compiler.end()
            return f"it takes longer than {seconds:g} s to compile"
        except EOFError:
            compiler.end()
            return "it takes too much memory to compile"
        self._idle.append(compiler)
        return answer.decode()

    def _take(self) -> _Compiler:
        while self._idle:
            compiler = self._idle.pop()
            if compiler.is_alive:
                return compiler
            compiler.end()
        return _Compiler()


class _Compiler:
    """One process."""

    def __init__(self) -> None:
        argv = [sys.executable, "-m", "neurond.grammarjob"]
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._read(1, time.monotonic() + START_S)
        except (TimeoutError, EOFError) as error:
            self.end()
            words = "the compiler of grammars does not start"
            raise error_for("overloaded", words) from error

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, grammar: bytes, seconds: float) -> bytes:
        """Raises TimeoutError, EOFError when it died."""
        deadline_s = time.monotonic() + seconds
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(LENGTH.pack(len(grammar)) + grammar)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise EOFError from error
        (size,) = LENGTH.unpack(self._read(LENGTH.size, deadline_s))
        return self._read(size, deadline_s)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # what it hadn't read is of no use

    def _read(self, size: int, deadline_s: float) -> bytes:
        assert self._process.stdout is not None
        fd, data = self._process.stdout.fileno(), b""
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            while len(data) < size:
                if not selector.select(max(0.0, deadline_s - time.monotonic())):
                    raise TimeoutError
                piece = os.read(fd, size - len(data))
                if not piece:
                    raise EOFError
                data += piece
        return data
