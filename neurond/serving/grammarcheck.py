"""Whether a grammar can be compiled, found out before a device hears of it.

Front-end worker. A grammar is a client's program: compiling one takes milliseconds or,
if it is made to, seconds. So it happens off the loop, under a deadline, and agents that
send the same schema with every request pay once.

Invariant: the event loop compiles nothing; what passed here compiles on the device too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ipc.errors import ClientError, error_for
from neurond import grammar as grammars
from neurond.compiling import START_S
from neurond.serving.structured import Grammar

LIMIT_S = 2 * grammars.CHECK_S + START_S
"""More than a check takes to give itself up."""
_THREADS = 2
_MAX_KNOWN = 256
_MAX_KNOWN_CHARS = 4 << 20


class GrammarCheck:
    """`check` raises ClientError with the compiler's words."""

    def __init__(
        self, check: Callable[[str], None] = grammars.check, *, limit_s: float = LIMIT_S
    ) -> None:
        self._check = check
        self._limit_s = limit_s
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="grammar")
        self._good: dict[str, None] = {}
        self._good_chars = 0

    async def check(self, grammar: Grammar) -> None:
        """Raises ClientError naming the field; overloaded while others' compile."""
        if grammar.text in self._good:
            return
        work = self._pool.submit(self._check, grammar.text)
        try:
            await asyncio.wait_for(asyncio.wrap_future(work), self._limit_s)
        except TimeoutError as error:
            raise self._too_late(grammar, has_begun=work.running()) from error
        except ClientError as error:
            raise ClientError(error.message, param=grammar.param) from error
        self._remember(grammar.text)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        grammars.COMPILERS.close()

    def _too_late(self, grammar: Grammar, *, has_begun: bool) -> Exception:
        if not has_begun:
            return error_for("overloaded", "grammars of others are being compiled")
        words = f"{grammar.param} takes too long to compile; make it simpler"
        return ClientError(words, param=grammar.param)

    def _remember(self, text: str) -> None:
        """The last ones stay, by number and by size."""
        if text in self._good:
            return
        self._good[text] = None
        self._good_chars += len(text)
        while len(self._good) > _MAX_KNOWN or self._good_chars > _MAX_KNOWN_CHARS:
            oldest = next(iter(self._good))
            del self._good[oldest]
            self._good_chars -= len(oldest)
