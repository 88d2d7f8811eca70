"""Which tokens the grammars of running sequences allow next.

Device process, torch-free. What a sequence must follow is kept in `sequence.grammar`: a
Compilation until it is ready, then a Constraint to the sequence's end, also while it
has given way: it follows the emitted ids and needs nothing else. Around a forward:

    filling = masks.begin(sequences)   side thread fills the bitmask …
    backend computes                   … meanwhile (llguidance releases the interpreter)
    filling.take()                     the bitmask
    masks.accept(sequence, token)      after the draw

Invariants: EOS and stop ids are allowed exactly where the grammar may end, and nothing
but EOS once it must; other special tokens only where a Lark grammar names them. What is
wrong with one matcher is that sequence's error and leaves its row empty; a matcher that
never comes back costs one wait and its thread, not the others.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from collections.abc import Sequence as Listing
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llguidance import LLTokenizer

from neurond.device.compilations import (
    COMPILE_S,
    Compilation,
    Compilations,
    Compiler,
    Constraint,
    compiled,
    dead_end,
)
from neurond.device.sequence import Sequence
from neurond.device.sidethread import SideThread

Words = npt.NDArray[np.int32]
"""[ceil(V / 32)]: bit i % 32 of word i // 32 is token i."""

_FILL_S = 1.0  # a mask takes 20 to 200 us


class _Row(NamedTuple):
    """A row of a bitmask, and where it is being computed."""

    place: int
    sequence: Sequence
    side: SideThread
    words: Future[Words]


class Filling:
    """A bitmask that is being filled."""

    def __init__(
        self,
        masks: Masks,
        bitmask: npt.NDArray[np.int32] | None,
        rows: list[_Row],
    ) -> None:
        self._masks = masks
        self._bitmask = bitmask
        self._rows = rows

    def take(self) -> npt.NDArray[np.int32] | None:
        """[R, ceil(V / 32)], all ones where there is no grammar; None if nowhere.

        Waits for the side thread. The row of a sequence with an error is empty.
        """
        for row in self._rows:
            assert self._bitmask is not None
            self._bitmask[row.place] = self._masks.fetch(row)
        return self._bitmask


class Masks:
    """Of one resident model. Owns a side thread for fills and one for compilations.

    Building the tokenizer takes 0.3 to 1 s and, unlike all else here, holds the
    interpreter: with `build_now` off it waits for the first grammar. Let it be on where
    no stream can be running.
    """

    def __init__(  # noqa: PLR0913  limits that tests shorten
        self,
        folder: Path,
        vocab_size: int,
        eos_ids: Collection[int],
        *,
        build_now: bool = True,
        compile_s: float = COMPILE_S,
        compiler: Compiler = compiled,
        fill_s: float = _FILL_S,
    ) -> None:
        self._num_words = -(-vocab_size // 32)
        self._eos_ids = frozenset(eos_ids)
        self._fill_s = fill_s
        self._side = SideThread("masks")
        self._compilations = Compilations(
            functools.partial(_tokenizer, folder, vocab_size, sorted(self._eos_ids)),
            self._eos_ids,
            build_now=build_now,
            compile_s=compile_s,
            compiler=compiler,
        )

    def close(self) -> None:
        self._side.stop()
        self._compilations.close()

    def warm(self) -> None:
        """Build the tokenizer, if it isn't yet: nobody streams now. Never blocks."""
        self._compilations.warm()

    def prepare(self, sequence: Sequence) -> None:
        """Begin to compile its grammar and to follow what it has emitted (resume).

        Once per sequence; never blocks. Nothing to do where there is no grammar.
        """
        if sequence.submit.grammar:
            emitted = sequence.ids[sequence.submit.num_prompt :]
            text = sequence.submit.grammar
            sequence.grammar = self._compilations.start(text, emitted)

    def is_ready(self, sequence: Sequence) -> bool:
        """Whether it can be computed. Raises ServiceError. Never blocks."""
        if isinstance(sequence.grammar, Compilation):
            constraint = self._compilations.result(sequence.grammar)
            if constraint is None:
                return False
            sequence.grammar = constraint
        return True

    def release(self, sequence: Sequence) -> None:
        """Stop compiling for it."""
        if isinstance(sequence.grammar, Compilation):
            self._compilations.cancel(sequence.grammar)

    def begin(self, sequences: Listing[Sequence]) -> Filling:
        """Start on the rows of these sequences, in their order."""
        bound = [(row, s) for row, s in enumerate(sequences) if s.grammar is not None]
        if not bound:
            return Filling(self, None, [])
        bitmask = np.full((len(sequences), self._num_words), -1, np.int32)
        return Filling(self, bitmask, [self._start(row, s) for row, s in bound])

    def fetch(self, row: _Row) -> Words:
        """A row that was started. One that doesn't come is given up with its thread;
        those that waited behind it are started anew."""
        if row.side is not self._side and row.words.cancel():
            row = self._start(row.place, row.sequence)
        try:
            return row.words.result(self._fill_s)
        except TimeoutError:
            self._leave_behind()
            constraint: Constraint = row.sequence.grammar
            constraint.error = dead_end("it took too long to follow")
            return self._no_token()

    def accept(self, sequence: Sequence, token: int) -> None:
        """The token was drawn for the sequence. Must not run beside a filling."""
        constraint: Constraint | None = sequence.grammar
        if constraint is None or constraint.error is not None:
            return
        if token in self._eos_ids or token in sequence.stop_ids:
            constraint.ended = True
        elif not constraint.ended and not constraint.matcher.consume_token(token):
            constraint.error = dead_end(constraint.matcher.get_error())

    # -- on the side thread

    def _fill(self, constraint: Constraint, stop_ids: Collection[int]) -> Words:
        if constraint.error is not None:
            return self._no_token()
        if constraint.ended:
            return _allow(self._no_token(), self._eos_ids or stop_ids)
        matcher = constraint.matcher
        words = np.zeros(constraint.num_words, np.int32)
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if matcher.is_error():
            constraint.error = dead_end(matcher.get_error())
            return self._no_token()
        words = words[: self._num_words]
        return _allow(words, stop_ids) if matcher.is_accepting() else words

    # -- bookkeeping

    def _start(self, place: int, sequence: Sequence) -> _Row:
        constraint, stop_ids = sequence.grammar, sequence.stop_ids
        words = self._side.submit(lambda: self._fill(constraint, stop_ids))
        return _Row(place, sequence, self._side, words)

    def _no_token(self) -> Words:
        return np.zeros(self._num_words, np.int32)

    def _leave_behind(self) -> None:
        self._side.stop()
        self._side = SideThread("masks")


def _tokenizer(folder: Path, vocab_size: int, eos_ids: list[int]) -> LLTokenizer:
    """Raises OSError or ValueError when there is none that llguidance can read."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError("the model folder has no tokenizer.json")
    ends = [token for token in eos_ids if token < vocab_size] or None
    try:
        return LLTokenizer(str(path), n_vocab=vocab_size, eos_token=ends)
    except ValueError:  # more tokens than the model has rows
        return LLTokenizer(str(path), eos_token=ends)


def _allow(words: Words, ids: Collection[int]) -> Words:
    bits: Any = words.view(np.uint32)
    for token in ids:
        if token // 32 < len(bits):
            bits[token // 32] |= np.uint32(1 << token % 32)
    return words
