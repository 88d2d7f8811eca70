"""From a model that serves to one that gives the same bits in any company.

Device process. Its modules are told to compute in one form, its works to come in tiles;
the self-test decides whether that is enough, and what it costs is measured: forwards of
the same weights without tiles, and with them.

Invariant: a model that is not proven is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from functools import partial

import torch

from neurond.device import experts
from neurond.device.backend import Resident, Work
from neurond.device.computing import Computing, Held
from neurond.device.known import Known
from neurond.device.loader import Body
from neurond.device.pagedmodel import PagedModel
from neurond.device.private import PrivateModel
from neurond.device.selftest import SelfTest, prompt
from neurond.device.sliced import slice_products
from neurond.device.tiles import TiledModel
from neurond.device.trial import sequence_of
from neurond.device.turns import clock, in_turns

_COST_TOKENS = 64
_COST_RUNS = 3


class SteppedModel(PrivateModel):
    """A cache per sequence, an id a forward, so that chunks have no borders."""

    def _forward(
        self, mine: Held, ids: list[int], begin: int, num_kept: int
    ) -> torch.Tensor:
        step = super()._forward
        rows = [step(mine, [token], begin + at, 1) for at, token in enumerate(ids)]
        return torch.cat(rows[-num_kept:])


def make_invariant(
    model: Resident,
    computing: Computing,
    time_limit_s: float,
    known: Known | None = None,
) -> Generator[None, None, Computing]:
    """The model with invariant numerics; tells of it in `info`. Raises load_failed.

    Yields between slices. What is `known` to be proven is not proven again.
    """
    known = known or Known()
    body: Body = model.body
    experts.use_tiles(body.module)
    slice_products(body.module)
    _use_whole_products(body.device)
    changed = _changed(body, computing)
    if isinstance(changed, TiledModel) and known.tiles:
        changed.sizes = tuple(known.tiles)
        model.info["invariant_cost"] = known.cost
        return changed
    test = SelfTest(model, changed, time_limit_s)
    yield from in_turns(partial(_prove, test, changed), overlaps=True)
    decode, prefill = yield from in_turns(partial(_cost, model, computing, changed))
    cost = {"decode": decode, "prefill": prefill}
    model.info["invariant_cost"] = known.cost = cost
    known.tiles = list(changed.sizes) if isinstance(changed, TiledModel) else []
    text = f"decode takes {decode} and prefill {prefill} times as long as without"
    model.info.setdefault("notes", []).append(f"numerics are invariant: {text}")
    return changed


def _prove(test: SelfTest, changed: Computing) -> None:
    """On a thread, as one call: each new thread makes torch's kernels anew."""
    if isinstance(changed, TiledModel):
        deque(test.find_sizes(changed), maxlen=0)
    deque(test.prove(), maxlen=0)


def _changed(body: Body, computing: Computing) -> Computing:
    if isinstance(computing, PagedModel):
        return TiledModel(computing)
    return SteppedModel(body, computing.spec)


def _use_whole_products(device: torch.device) -> None:
    """On CUDA sums are not to be cut in parts that are rounded on their own."""
    if device.type == "cuda":
        matmul = torch.backends.cuda.matmul
        matmul.allow_bf16_reduced_precision_reduction = False
        matmul.allow_fp16_reduced_precision_reduction = False


def _cost(model: Resident, plain: Computing, changed: Computing) -> tuple[float, float]:
    """How many times as long one row, and a prompt, take."""
    ratios = []
    for num_ids in (1, _COST_TOKENS):
        best = [float("inf")] * 2
        for _ in range(_COST_RUNS):
            for at, computing in enumerate((plain, changed)):
                best[at] = min(best[at], _seconds(model, computing, num_ids))
        ratios.append(round(best[1] / best[0], 2))
    return ratios[0], ratios[1]


def _seconds(model: Resident, computing: Computing, num_ids: int) -> float:
    """Of a forward over so many ids, as far as they fit, behind one other."""
    spec = computing.spec
    room = min(model.context, spec.max_pages * spec.page_tokens)
    ids = prompt(model, min(room, num_ids + 1))
    pages = list(range(-(-len(ids) // spec.page_tokens)))
    sequence = sequence_of(model, pages, ids)
    with torch.inference_mode():
        try:
            computing.compute([Work(sequence, 1)])
            sequence.num_computed = 1
            begun_s = clock()
            computing.compute([Work(sequence, len(ids) - 1)]).of(0).cpu()
            return clock() - begun_s
        finally:
            computing.release(sequence)
