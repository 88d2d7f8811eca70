"""What a request adds to and takes from its logits before anything is drawn.

Device process. A history counts the tokens of one sequence as they come, so that a step
costs what is new and not what has been; it can be made again from the ids at any time.
The edits of all rows of a step are applied together: single elements of the scores, the
rest of a row is never touched.

Order: logit_bias, bans and grammar, then repetition, presence and frequency penalties.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ipc.messages import Sampling
from neurond.device.sequence import Sequence

_LARGEST = 1e30  # a bias beyond it would overflow to inf
_FIRST_ROOM = 64

Scores = torch.Tensor
"""[R, V] float32 on the device, contiguous; edited in place."""

Bitmask = npt.NDArray[np.int32]
"""[R, ceil(V / 32)]: bit i % 32 of word i // 32 is set when a row may emit token i."""


def penalises(sampling: Sampling) -> bool:
    return (
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
    )


class History:
    """The distinct tokens of a sequence, each with how often it was emitted.

    Prompt tokens are there only for a repetition penalty, with a count of 0 until they
    are emitted.
    """

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        num_prompt = sequence.submit.num_prompt
        self._places: dict[int, int] = {}
        self._tokens = np.empty(_FIRST_ROOM, np.int64)
        self._counts = np.zeros(_FIRST_ROOM, np.float32)
        self._num_read = num_prompt
        if sequence.submit.sampling.repetition_penalty != 1.0:
            for token in sequence.ids[:num_prompt]:
                self._place(token)

    def read(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Tokens and counts, with what was emitted since the last call."""
        ids = self.sequence.ids
        for index in range(self._num_read, len(ids)):
            place = self._place(ids[index])  # may replace the arrays
            self._counts[place] += 1
        self._num_read = len(ids)
        num = len(self._places)
        return self._tokens[:num], self._counts[:num]

    def _place(self, token: int) -> int:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._tokens):
            room = 2 * place
            self._tokens = np.resize(self._tokens, room)
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
        self._tokens[place] = token
        return place


def edit(
    scores: Scores,
    sequences: Listing[Sequence],
    histories: dict[int, History],
    bitmask: Bitmask | None,
) -> None:
    """Apply everything to the rows. `histories` are by row."""
    _bias(scores, sequences)
    _ban(scores, sequences)
    if bitmask is not None:
        _constrain(scores, sequences, bitmask)
    if histories:
        _penalise(scores, sequences, histories)


def upload(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """To the device without waiting for what is queued there."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _bias(scores: Scores, sequences: Listing[Sequence]) -> None:
    width = scores.shape[-1]
    biases: dict[int, float] = {}
    for row, sequence in enumerate(sequences):
        for token, bias in sequence.submit.sampling.logit_bias:
            if 0 <= token < width:
                place = row * width + token
                biases[place] = biases.get(place, 0.0) + bias
    if biases:
        places = upload(np.fromiter(biases, np.int64), scores.device)
        values = np.clip(np.fromiter(biases.values(), np.float64), -_LARGEST, _LARGEST)
        added = upload(values.astype(np.float32), scores.device)
        flat = scores.view(-1)
        flat[places] += added


def _ban(scores: Scores, sequences: Listing[Sequence]) -> None:
    width = scores.shape[-1]
    banned = [
        row * width + token
        for row, sequence in enumerate(sequences)
        for token in sequence.banned_ids
        if 0 <= token < width
    ]
    if banned:
        places = upload(np.asarray(banned, np.int64), scores.device)
        scores.view(-1).index_fill_(0, places, float("-inf"))


def _constrain(scores: Scores, sequences: Listing[Sequence], bitmask: Bitmask) -> None:
    """-inf for what a grammar doesn't allow, and for ids beyond its mask."""
    bound = [row for row, s in enumerate(sequences) if s.submit.grammar]
    if not bound:
        return
    forbidden = ~_allowed(bitmask[bound], scores.shape[-1], scores.device)
    if len(bound) == len(sequences):
        scores.masked_fill_(forbidden, float("-inf"))
        return
    index = upload(np.asarray(bound), scores.device)
    scores[index] = scores[index].masked_fill_(forbidden, float("-inf"))


def _allowed(words: Bitmask, width: int, device: torch.device) -> torch.Tensor:
    """[R, V] bool. On the host by table, on a device by shifts: few bytes travel."""
    if device.type == "cpu":
        bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
        unpacked = torch.from_numpy(bits).view(torch.bool)
    else:
        shifts = torch.arange(32, dtype=torch.int32, device=device)
        told = upload(np.ascontiguousarray(words), device)
        unpacked = ((told.unsqueeze(-1) >> shifts) & 1).flatten(1).bool()
    missing = width - unpacked.shape[-1]
    return torch.nn.functional.pad(unpacked, (0, max(0, missing)))[:, :width]


def _penalise(
    scores: Scores, sequences: Listing[Sequence], histories: dict[int, History]
) -> None:
    tables = [
        _table(row, scores.shape[-1], sequences[row].submit.sampling, history)
        for row, history in histories.items()
    ]
    places = upload(np.concatenate([places for places, _ in tables]), scores.device)
    values = np.concatenate([values for _, values in tables], axis=1)
    repetition, presence, frequency = upload(values, scores.device)
    flat = scores.view(-1)
    old = flat[places]
    new = torch.where(old > 0, old / repetition, old * repetition)
    flat[places] = new.sub_(presence).sub_(frequency)


def _table(
    row: int, width: int, sampling: Sampling, history: History
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Places in the flat scores; for each, divisor and the two subtrahends."""
    tokens, counts = history.read()
    values = np.empty((3, len(tokens)), np.float32)
    values[0] = sampling.repetition_penalty
    values[1] = np.where(counts > 0, np.float32(sampling.presence_penalty), 0)
    values[2] = np.float32(sampling.frequency_penalty) * counts
    return row * width + tokens, values
