"""What a model answers to a fixed prompt: the sign that a device computes rightly.

Device process. Taken at the end of every load, through the caches and kernels that
will serve. The supervisor compares it with that of the model's first load: weights that
came out damaged, or a device that computes wrongly, give another (S19). A digest is of
the likeliest ids behind each id of the prompt and of some drawn behind it; a vector's
is of its largest dimensions. So it doesn't hang on the last bit of a logit.

Invariant: nothing of it stays in the model.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Generator
from collections.abc import Sequence as Listing
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from ipc.errors import ServiceError
from neurond.device import encoder
from neurond.device.backend import Resident, Row, Work
from neurond.device.computing import Computing
from neurond.device.encoder import EncoderBody
from neurond.device.trial import sequence_of
from neurond.device.turns import in_turns
from neurond.device.weights import refuse

T = TypeVar("T")
_PROMPT = 16
_DRAWN = 2
_DIMENSIONS = 8
_DIGITS = 16
_NAN = "the model computes NaN: its weights are damaged"

DigestSteps = Generator[None, None, str]


def of_tokens(
    model: Resident, computing: Computing, *, alone: bool = False
) -> DigestSteps:
    """Yields between slices, where `alone` between forwards. Raises load_failed."""
    size = computing.spec.page_tokens
    ids = prompt(model.vocab_size, max(1, min(_PROMPT, model.context - _DRAWN)))
    pages = list(range(-(-(len(ids) + _DRAWN) // size)))
    sequence = sequence_of(model, pages, ids, scored=True)
    found: list[int] = []
    try:
        for _ in range(_DRAWN):
            work = Work(sequence, sequence.num_pending)
            call = partial(_likeliest, computing, work)
            found += yield from _run(call, alone=alone)
            sequence.num_computed += work.num_ids
            sequence.ids.append(found[-1])
    finally:
        computing.release(sequence)
        computing.clear_pages(pages)
    return digest(found)


def of_vector(model: Resident) -> DigestSteps:
    """As `of_tokens`, for a model that gives vectors."""
    ids = prompt(model.vocab_size, min(_PROMPT, model.context))
    outcome = yield from in_turns(partial(_vector, model.body, ids), overlaps=True)
    if isinstance(outcome, ServiceError) or outcome.vector is None:
        raise refuse(_NAN)
    sizes = np.abs(np.frombuffer(outcome.vector, "<f4"))
    return digest(np.argsort(-sizes, kind="stable")[:_DIMENSIONS].tolist())


def prompt(vocab_size: int, count: int) -> tuple[int, ...]:
    """Ids from all over the vocabulary."""
    step = max(1, vocab_size // max(1, count))
    return tuple((step // 2 + number * step) % vocab_size for number in range(count))


def digest(numbers: Listing[int]) -> str:
    """Short, for people to compare."""
    raw = struct.pack(f"<{len(numbers)}Q", *numbers)
    return hashlib.sha256(raw).hexdigest()[:_DIGITS]


def _run(call: Callable[[], T], *, alone: bool) -> Generator[None, None, T]:
    """With nobody to wait for it, a forward is faster in one go."""
    if not alone:
        return (yield from in_turns(call, overlaps=True))
    yield
    return call()


@torch.inference_mode()
def _likeliest(computing: Computing, work: Work) -> list[int]:
    """Of every row of the work."""
    rows = computing.compute([work]).of(0)
    best = rows.max(dim=-1)
    if not torch.isfinite(best.values).all():
        raise refuse(_NAN)
    ids: list[int] = best.indices.tolist()
    return ids


@torch.inference_mode()
def _vector(body: EncoderBody, ids: tuple[int, ...]) -> Row | ServiceError:
    return encoder.vectors(body, [ids])[0]
