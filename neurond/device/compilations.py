"""From grammars to matchers, on a thread of their own.

Device process, torch-free. A compilation takes milliseconds or, if a client wants it
to, seconds; no step waits for it, and no mask. The loop asks now and then what has
become of one:

    start ─▶ queued ─▶ begun ─▶ Constraint | ServiceError
                ▲         └─ over time ─▶ ClientError, left behind with its thread
                └─ those behind it begin again on a new one

Invariant: one that never comes back costs its request, a thread and `compile_s`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future

from llguidance import LLMatcher, LLTokenizer

from ipc.errors import ClientError, ServiceError, error_for
from neurond import grammar
from neurond.device.sidethread import SideThread

Compiler = Callable[[LLTokenizer, str], LLMatcher]

COMPILE_S = 2.0
"""As long as the front end's check allowed."""
_BUILD_S = 20.0  # a tokenizer takes 0.3 to 2 s
_MOST_RECENT = 16


class Constraint:
    """One sequence's matcher: it has followed all that was emitted. `error` is why its
    row is empty."""

    __slots__ = ("ended", "error", "matcher", "num_words")

    def __init__(self, matcher: LLMatcher, num_words: int) -> None:
        self.matcher = matcher
        self.num_words = num_words
        self.ended = False
        self.error: ServiceError | None = None


class Compilation:
    """One sequence's constraint on its way. `emitted`: ids that it has to follow."""

    __slots__ = ("asked_s", "begun_s", "emitted", "future", "text")

    def __init__(self, text: str, emitted: list[int], now_s: float) -> None:
        self.text = text
        self.emitted = emitted
        self.asked_s = now_s
        self.begun_s = 0.0
        self.future: Future[Constraint]


def compiled(tokenizer: LLTokenizer, text: str) -> LLMatcher:
    """Raises ClientError with the compiler's own words."""
    form = grammar.compiler_form(text)
    matcher = LLMatcher(tokenizer, form, log_level=0, limits=grammar.LIMITS)
    if matcher.is_error():
        problem = grammar.shortened(matcher.get_error())
        raise ClientError(f"the grammar can't be used: {problem}")
    return matcher


def dead_end(problem: str) -> ServiceError:
    words = grammar.shortened(problem)
    return error_for("grammar_dead_end", f"the grammar can't go on: {words}")


class Compilations:
    """Of one resident model. Owns its tokenizer and the thread."""

    def __init__(
        self,
        build: Callable[[], LLTokenizer],
        eos_ids: frozenset[int],
        *,
        build_now: bool,
        compile_s: float = COMPILE_S,
        compiler: Compiler = compiled,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`build` raises OSError or ValueError where there is no tokenizer."""
        self._build = build
        self._eos_ids = eos_ids
        self._compile_s = compile_s
        self._compiler = compiler
        self._clock = clock
        self._side = SideThread("grammars")
        self._queue: list[Compilation] = []
        self._recent: dict[str, LLMatcher] = {}
        self._tokenizer = self._side.submit(build) if build_now else None

    def close(self) -> None:
        self._side.stop()

    def warm(self) -> None:
        """Have the tokenizer built, once."""
        if self._tokenizer is None:
            self._tokenizer = self._side.submit(self._build)

    def start(self, text: str, emitted: list[int]) -> Compilation:
        """Never blocks."""
        self.warm()
        compilation = Compilation(text, emitted, self._clock())
        self._submit(compilation)
        self._queue.append(compilation)
        return compilation

    def result(self, compilation: Compilation) -> Constraint | None:
        """None: not yet. Raises ServiceError. Never blocks."""
        self._tend()
        if not compilation.future.done():
            self._check_tokenizer(compilation)
            return None
        try:
            return compilation.future.result()
        except (OSError, ValueError) as error:
            words = "structured output is not supported for this model"
            param = "response_format"
            raise error_for("unsupported_parameter", words, param=param) from error

    def cancel(self, compilation: Compilation) -> None:
        """Nobody wants it. One that has begun goes on, as far as it may."""
        compilation.future.cancel()
        self._tend()

    # -- on the loop

    def _tend(self) -> None:
        """Forget those that are done, and leave behind who takes too long."""
        self._queue = [c for c in self._queue if not c.future.done()]
        head = self._queue[0] if self._queue else None
        if head and 0 < head.begun_s <= self._clock() - self._compile_s:
            del self._queue[0]
            late = ClientError("the grammar takes too long to compile")
            head.future = Future()
            head.future.set_exception(late)
            self._side.stop()
            self._side = SideThread("grammars")
            self._recent = dict(self._recent)
            for compilation in self._queue:
                if compilation.future.cancel():
                    self._submit(compilation)

    def _check_tokenizer(self, compilation: Compilation) -> None:
        """Raises CapacityError when it is the tokenizer that doesn't come."""
        assert self._tokenizer is not None
        late = self._clock() > compilation.asked_s + _BUILD_S
        if late and not self._tokenizer.done():
            self.cancel(compilation)
            raise error_for("overloaded", "the model is still being prepared")

    def _submit(self, compilation: Compilation) -> None:
        recent = self._recent
        compilation.future = self._side.submit(lambda: self._run(compilation, recent))

    # -- on the thread

    def _run(
        self, compilation: Compilation, recent: dict[str, LLMatcher]
    ) -> Constraint:
        assert self._tokenizer is not None
        tokenizer = self._tokenizer.result()  # submitted before: it is there
        compilation.begun_s = self._clock()
        matcher = self._matcher(tokenizer, compilation.text, recent).deep_copy()
        constraint = Constraint(matcher, -(-tokenizer.vocab_size // 32))
        emitted = compilation.emitted
        ends = [place for place, id in enumerate(emitted) if id in self._eos_ids]
        constraint.ended = bool(ends)
        if not matcher.consume_tokens(emitted[: ends[0]] if ends else emitted):
            raise dead_end("what was emitted before doesn't follow it")
        return constraint

    def _matcher(
        self, tokenizer: LLTokenizer, text: str, recent: dict[str, LLMatcher]
    ) -> LLMatcher:
        """Of the last few grammars: the choices of a request have the same, and agents
        send theirs with every request."""
        matcher = recent.pop(text, None)
        if matcher is None:
            matcher = self._compiler(tokenizer, text)
        recent[text] = matcher
        if len(recent) > _MOST_RECENT:
            del recent[next(iter(recent))]
        return matcher
