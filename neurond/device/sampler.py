"""Draws the next token of each row: a pure function of logits, parameters and numbers.

Device process. There is no generator state: the random number of a token is a hash of
(seed, choice, output index), so a sequence that is resumed in another process, or
computed in other company, draws what it would have drawn (D7). The tensor work is
vectorised over rows and queued on the device; its results are read back once per call
(and again for the rare rows whose distribution was too flat for the first try).

Order: logit_bias, bans and grammar, repetition / presence / frequency penalties,
temperature, typical_p, min_p, top_k, top_p, draw. Equals are ordered by token id.

Invariant: a row's outcome is a function of that row alone; what is wrong with one row
(NaN, a grammar without a way on) is that row's outcome.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence as Listing
from typing import NamedTuple

import numpy as np
import torch

from ipc.errors import ServiceError, error_for
from ipc.messages import Sampling
from neurond.device import edits, nucleus, scores
from neurond.device.backend import Outcome, Row
from neurond.device.sequence import Sequence
from neurond.device.verdict import nan_error

_GREEDY_BELOW = 1e-5
_WIDTHS = (512, 2048)  # of 100 rows of a small model at top_p 0.95, 90 and 99
_CPU_ROWS = 1  # at once: the temporaries of a row stay in the core's cache
_MAX_HISTORIES = 1024

# rows of what is read back: the token, are its logits sound, was there a token that
# may come, is the token proven to be the one
_TOKEN, _SOUND, _ALIVE, _PROVEN = range(4)


def uniform(seed: int, choice: int, index: int) -> float:
    """In [0, 1), with 53 random bits."""
    key = struct.pack("<QQQ", seed & (2**64 - 1), choice, index)
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) / float(1 << 53)


class _Batch(NamedTuple):
    logits: torch.Tensor
    sequences: Listing[Sequence]
    bitmask: edits.Bitmask | None


class Sampler:
    """Owns what it counted of each sequence; ids make it again at any time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._histories: dict[int, edits.History] = {}

    @property
    def num_histories(self) -> int:
        return len(self._histories)

    def release(self, sequence: Sequence) -> None:
        """Forget the sequence. Without it, the oldest are forgotten in time."""
        self._histories.pop(id(sequence), None)

    def draw(
        self,
        logits: torch.Tensor,
        sequences: Listing[Sequence],
        bitmask: edits.Bitmask | None = None,
    ) -> list[Outcome]:
        """One outcome per row of logits [R, V], any float dtype, on our device.

        Call it before the drawn token is appended. Only rows whose request has a
        grammar obey `bitmask`. A row with NaN or +inf is a nan_logits error, one
        without a token that may come a grammar_dead_end. `Row.logprob` and `top` are
        set where the request asks for them: of the raw logits, see `scores`.
        """
        batch = _Batch(logits, sequences, bitmask)
        with torch.inference_mode():
            report = self._begin(batch)
            pending = [row for row, s in enumerate(sequences) if not _is_plain(s)]
            for width in (*_WIDTHS, logits.shape[-1]):
                for rows in _alike(pending, sequences):
                    self._draw(batch, rows, width, report)
                measured = _measure(batch, report[_TOKEN])
                told = report.tolist()  # the one wait for the device
                pending = [row for row in pending if not told[_PROVEN][row]]
                if not pending:
                    break
            return _outcomes(sequences, told, measured)

    def _begin(self, batch: _Batch) -> torch.Tensor:
        """[4, R] int64 on the device: the report with the plain rows answered."""
        logits, sequences, _ = batch
        plain = [row for row, sequence in enumerate(sequences) if _is_plain(sequence)]
        if len(plain) == len(sequences):
            best, tokens = logits.max(-1)
        else:
            best = logits.amax(-1)
            tokens = torch.zeros_like(best, dtype=torch.int64)
        if 0 < len(plain) < len(sequences):
            index = edits.upload(np.asarray(plain), self._device)
            tokens[index] = logits.index_select(0, index).argmax(-1)
        ones = torch.ones_like(tokens)
        # NaN and +inf win every comparison
        return torch.stack((tokens, best.isfinite(), ones, ones))

    def _draw(
        self, batch: _Batch, rows: list[int], width: int, report: torch.Tensor
    ) -> None:
        """Write tokens, alive and proven of rows that are drawn alike."""
        step = _CPU_ROWS if self._device.type == "cpu" else len(rows)
        parts = [
            self._rank(batch, rows[start : start + step], width)
            for start in range(0, len(rows), step)
        ]
        best, *ranked = (torch.cat(columns) for columns in zip(*parts, strict=True))
        drawn = nucleus.Ranked(*ranked)
        index = edits.upload(np.asarray(rows), self._device)
        draw = _parameters([batch.sequences[row] for row in rows], self._device)
        tokens, proven = nucleus.pick(drawn, draw, batch.logits.shape[-1])
        report[_TOKEN, index] = tokens
        report[_ALIVE, index] = (best > float("-inf")).long()
        report[_PROVEN, index] = (proven | ~best.isfinite()).long()

    def _rank(
        self, batch: _Batch, rows: list[int], width: int
    ) -> tuple[torch.Tensor, ...]:
        """The best edited score of some rows, and the columns of `nucleus.Ranked`."""
        sequences = [batch.sequences[row] for row in rows]
        index = edits.upload(np.asarray(rows), self._device)
        edited = batch.logits.index_select(0, index).float()
        bitmask = None if batch.bitmask is None else batch.bitmask[rows]
        edits.edit(edited, sequences, self._counted(sequences), bitmask)
        like = sequences[0].submit.sampling
        if _is_greedy(like):
            best, ids = edited.max(-1)
            only = torch.ones_like(best, dtype=torch.float64).unsqueeze(-1)
            return best, ids.unsqueeze(-1), only, only
        best = edited.amax(-1)
        draw = _parameters(sequences, self._device)
        edited /= draw.temperature.float()
        if like.typical_p < 1.0:
            edited = nucleus.typical(edited, draw.typical_p)
        min_p = draw.min_p if like.min_p > 0.0 else None
        return best, *nucleus.rank(edited, min_p, width)

    def _counted(self, sequences: Listing[Sequence]) -> dict[int, edits.History]:
        """By row, for those with penalties."""
        return {
            row: self._history(sequence)
            for row, sequence in enumerate(sequences)
            if edits.penalises(sequence.submit.sampling)
        }

    def _history(self, sequence: Sequence) -> edits.History:
        history = self._histories.pop(id(sequence), None) or edits.History(sequence)
        self._histories[id(sequence)] = history  # now the newest
        if len(self._histories) > _MAX_HISTORIES:
            del self._histories[next(iter(self._histories))]
        return history


def _is_greedy(sampling: Sampling) -> bool:
    return sampling.temperature < _GREEDY_BELOW


def _is_plain(sequence: Sequence) -> bool:
    """The argmax of the untouched logits is the answer."""
    sampling = sequence.submit.sampling
    return (
        _is_greedy(sampling)
        and not sequence.submit.grammar
        and not sampling.logit_bias
        and not edits.penalises(sampling)
        and not sequence.banned_ids
    )


def _alike(rows: Listing[int], sequences: Listing[Sequence]) -> list[list[int]]:
    """Rows by which passes over a whole row they need."""
    alike: dict[tuple[bool, ...], list[int]] = {}
    for row in rows:
        sampling = sequences[row].submit.sampling
        told = (sampling.typical_p < 1.0, sampling.min_p > 0.0)
        kind = () if _is_greedy(sampling) else told
        alike.setdefault(kind, []).append(row)
    return list(alike.values())


def _parameters(sequences: Listing[Sequence], device: torch.device) -> nucleus.Draw:
    table = np.empty((len(sequences), len(nucleus.Draw._fields)))
    for row, sequence in enumerate(sequences):
        submit = sequence.submit
        s = submit.sampling
        number = uniform(submit.seed, submit.choice, sequence.num_emitted)
        table[row] = (s.temperature, s.typical_p, s.min_p, s.top_k, s.top_p, number)
    return nucleus.Draw.of(edits.upload(table, device))


def _measure(batch: _Batch, tokens: torch.Tensor) -> scores.Measured | None:
    """Of the rows that ask, in their order; queued."""
    logits, sequences, _ = batch
    asked = [row for row, sequence in enumerate(sequences) if _asks(sequence)]
    if not asked:
        return None
    most = max(sequences[row].submit.sampling.logprobs for row in asked)
    index = edits.upload(np.asarray(asked), logits.device)
    return scores.measure(logits.index_select(0, index), tokens[index], most)


def _asks(sequence: Sequence) -> bool:
    return sequence.submit.sampling.logprobs >= 0


def _outcomes(
    sequences: Listing[Sequence],
    told: list[list[int]],
    measured: scores.Measured | None,
) -> list[Outcome]:
    figures = iter(measured.read() if measured else ())
    return [
        _outcome(sequence, row, next(figures) if _asks(sequence) else None)
        for sequence, *row in zip(sequences, *told, strict=True)
    ]


def _outcome(
    sequence: Sequence, row: list[int], figures: scores.Score | None
) -> Outcome:
    if not row[_SOUND]:
        return nan_error()
    if not row[_ALIVE]:
        return _dead_end(sequence)
    if figures is None:
        return Row(row[_TOKEN])
    own, top = figures
    return Row(row[_TOKEN], own, top[: sequence.submit.sampling.logprobs])


def _dead_end(sequence: Sequence) -> ServiceError:
    """What the grammar said, or that nothing may follow."""
    told = getattr(sequence.grammar, "error", None)
    if isinstance(told, ServiceError):
        return told
    return error_for(
        "grammar_dead_end",
        "no token is allowed here: grammar, min_tokens and stop ids contradict",
    )
