"""How a loaded model becomes one that serves: pooled KV if it can be proven, or not.

Device process. transformers' own forward over a few ids shows the layers' layout, warms
the kernels and gives logits. The same ids are then computed over the pool, in chunks
and beside another sequence. Where both agree the pool serves; an architecture that does
anything else with its keys, masks or positions keeps caches of its own.

Invariant: the model is warm, and its weights gave finite numbers, before it serves.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

import torch

from ipc.messages import Sampling, Submit
from neurond.device import rope
from neurond.device.backend import CacheSpec, Resident, Work
from neurond.device.computing import Computing
from neurond.device.known import Known
from neurond.device.layout import TRIAL_IDS, Layout, Trial, layout_of, try_out
from neurond.device.loader import Body
from neurond.device.paged import NAME
from neurond.device.pagedmodel import PagedModel
from neurond.device.pool import page_bytes
from neurond.device.private import PrivateModel, sizes
from neurond.device.sequence import Sequence
from neurond.device.turns import in_turns
from neurond.device.varlen import Kernel
from neurond.device.verdict import FATAL_CLASSES, fault_class
from neurond.device.weights import refuse

_MISFITS = (
    ArithmeticError,
    AttributeError,
    AssertionError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a model raises that asks more of a cache than ours has."""

_TOLERANCE = {torch.float32: 1e-2}
_HALF_TOLERANCE = 0.1
_HALF = len(TRIAL_IDS) // 2
_FEW = 2
_IDS = (*TRIAL_IDS, TRIAL_IDS[0])


def make_ready(
    model: Resident,
    page_tokens: int,
    kv_bytes: int,
    kernel: Kernel | None,
    known: Known | None = None,
) -> Generator[None, None, Computing]:
    """Yields between slices. Raises load_failed.

    What is `known` is not tried out; it is told there what was found.
    """
    known = known or Known()
    body: Body = model.body
    if getattr(body.module.config, "is_encoder_decoder", False):
        raise refuse("models with an encoder and a decoder are not supported")
    rope.settle(body.module, model.context)
    few = TRIAL_IDS[:_FEW] if known.is_paged else TRIAL_IDS
    native = yield from _try_out(body, few)
    if not torch.isfinite(native.logits).all():
        raise refuse("the model computes NaN: its weights are damaged")
    yield
    layout = layout_of(body.module, native.cache)
    if layout is not None:
        before = _use_attention(body.module, NAME)
        paged = _paged(body, layout, page_tokens, kv_bytes, kernel)
        if known.is_paged or (yield from _fits(model, paged, native.logits)):
            known.is_paged = True
            return paged
        _use_attention(body.module, before)
    private = yield from _private(body, native, page_tokens, kv_bytes)
    if not (yield from _fits(model, private, native.logits)):
        kind = type(body.module).__name__
        raise refuse(f"{kind} doesn't give the same with a cache as without")
    return private


def _try_out(body: Body, ids: tuple[int, ...]) -> Generator[None, None, Trial]:
    run = partial(try_out, body.module, body.device, ids)
    return (yield from in_turns(run, overlaps=True))


def _private(
    body: Body, native: Trial, page_tokens: int, kv_bytes: int
) -> Generator[None, None, PrivateModel]:
    longer = yield from _try_out(body, TRIAL_IDS * 2)
    of_token, of_sequence = sizes(native.cache, longer.cache, len(TRIAL_IDS))
    spec = _spec(page_tokens, page_tokens * of_token, kv_bytes, of_sequence)
    return PrivateModel(body, spec)


def _paged(
    body: Body,
    layout: Layout,
    page_tokens: int,
    kv_bytes: int,
    kernel: Kernel | None,
) -> PagedModel:
    bytes_per_page = page_bytes(layout.shapes, page_tokens, layout.dtype)
    spec = _spec(page_tokens, bytes_per_page, kv_bytes, layout.state_bytes, shares=True)
    return PagedModel(body, layout, spec, kernel)


def _fits(
    model: Resident, computing: Computing, wanted: torch.Tensor
) -> Generator[None, None, bool]:
    """Whether the model computes the same this way. Faults are raised."""
    try:
        return (yield from _rehearse(model, computing, wanted))
    except _MISFITS as error:
        if fault_class(error) in {*FATAL_CLASSES, "capacity"}:
            raise
        return False


def _rehearse(
    model: Resident, computing: Computing, wanted: torch.Tensor
) -> Generator[None, None, bool]:
    """Two sequences, every mix of works. Whether the logits agree."""
    pages = _trial_pages(computing.spec.page_tokens)
    first, second = (
        sequence_of(
            model, list(range(number * pages, (number + 1) * pages)), _IDS, scored=True
        )
        for number in range(2)
    )
    plan = ([(first, _HALF)], [(first, _HALF), (second, _HALF)])
    found = []
    for works in (*plan, [(first, 1), (second, 1)]):
        call = partial(_computed, computing, [Work(s, count) for s, count in works])
        found.append((yield from in_turns(call, overlaps=True)))
        for sequence, count in works:
            sequence.num_computed += count
    for sequence in (first, second):
        computing.release(sequence)
    computing.clear_pages(range(2 * pages))
    # the second chunk is the first thing that depends on what was kept
    return _agree(found[1], wanted[_HALF:].float().cpu(), model.body.module.dtype)


@torch.inference_mode()
def _computed(computing: Computing, works: list[Work]) -> torch.Tensor:
    """Logits of the first work."""
    return computing.compute(works).of(0).float().cpu()


def _agree(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    """Most rows up to rounding: in half precision an expert may change places."""
    gaps = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp_min(1e-9)
    return bool(gaps.median() < _TOLERANCE.get(dtype, _HALF_TOLERANCE))


def _spec(
    page_tokens: int,
    bytes_per_page: int,
    kv_bytes: int,
    state_bytes: int = 0,
    *,
    shares: bool = False,
) -> CacheSpec:
    return CacheSpec(
        page_tokens=page_tokens,
        page_bytes=bytes_per_page,
        max_pages=max(
            2 * _trial_pages(page_tokens), kv_bytes // max(page_tokens, bytes_per_page)
        ),
        state_bytes=state_bytes,
        shares=shares,
    )


def _trial_pages(page_tokens: int) -> int:
    """Of one sequence."""
    return -(-(len(TRIAL_IDS) + 1) // page_tokens)


def sequence_of(
    model: Resident, pages: list[int], ids: tuple[int, ...], *, scored: bool = False
) -> Sequence:
    """Of these ids; `scored`: all its logits are wanted."""
    submit = Submit(
        id=0,
        attempt=0,
        model=model.name,
        ids=ids,
        num_prompt=len(ids),
        choice=0,
        seed=0,
        sampling=Sampling(prompt_logprobs=0 if scored else -1),
        max_tokens=1,
        stop_ids=(),
        grammar="",
        principal="",
        priority=0,
        deadline_s=0.0,
        cache_salt="",
    )
    sequence = Sequence(0, submit, model, 0.0)
    sequence.pages = pages
    return sequence


def _use_attention(module: Any, name: str) -> str:
    """Set the text layers' attention function. Returns the name of the one before."""
    config = module.config
    text = config.get_text_config(decoder=True)
    before: str = text._attn_implementation
    parts = [key for key in config.sub_configs if getattr(config, key, None) is text]
    module.set_attn_implementation({key: name for key in parts} or name)
    return before
