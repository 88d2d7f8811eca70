"""Every linear layer of a text model's body gets its packed form, one at a time.

Device process. A weight that is to be packed is read when its turn comes and dropped
when it is packed, so a load never holds a model's dense weights beside its packed ones.
Reading and packing are torch calls, reads and checksums, which leave the interpreter
alone however long they are: they go on beside the loop where one outlasts its slice.

Invariant: norms, routers, embeddings and vision towers stay as transformers made them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from neurond.device import blocks, linear, weights
from neurond.device.blocks import Blocks
from neurond.device.linear import LinearPlan, PackedLinear
from neurond.device.packed import Shelf
from neurond.device.processor import this_processor
from neurond.device.quant import Quant
from neurond.device.turns import in_turns
from neurond.device.weights import Entry

_ROUTERS = ("gate", "router", "shared_expert_gate")


@dataclass(frozen=True, slots=True)
class Site:
    """A linear layer that is to be packed; `name` is its path in the module."""

    name: str
    layer: nn.Linear
    plan: LinearPlan

    @property
    def key(self) -> str:
        """Of its weight in a checkpoint."""
        return f"{self.name}.weight"


@dataclass(frozen=True, slots=True)
class Source:
    """A weight that isn't in memory yet. `read` blocks; `dense`: so does that, and
    gives the same weight as the checkpoint has it."""

    size_bytes: int
    read: Callable[[], torch.Tensor | Blocks]
    dense: Callable[[], torch.Tensor]


def sites(module: Any, quant: Quant) -> list[Site]:
    """In the order of the module. The head is that of the text."""
    if quant.linear is None and quant.head is None:
        return []
    head = module.get_output_embeddings()
    inside = {id(part) for part in module.get_decoder().modules()}
    found = []
    for name, layer in module.named_modules():
        plan = quant.head if layer is head else quant.linear
        belongs = layer is head or id(layer) in inside
        if plan is not None and belongs and _is_packable(name, layer):
            found.append(Site(name, layer, plan))
    return found


def from_entry(entry: Entry) -> Source:
    read = partial(weights.fetch, entry)
    return Source(entry.size_bytes, read, read)


def from_blocks(name: str, entries: Mapping[str, Entry], own: Entry) -> Source | None:
    """Blocks that a conversion has kept, if it did for this layer. `own`: its weight's
    in the checkpoint."""
    parts = [entries.get(f"{name}.{part}") for part in blocks.PARTS]
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        return None

    def read() -> Blocks:
        stored = {entry.name: weights.fetch(entry) for entry in whole}
        return blocks.from_stored(name, stored)

    size_bytes = sum(entry.size_bytes for entry in whole)
    return Source(size_bytes, read, partial(weights.view, own))


def pack(
    module: Any, found: list[Site], sources: Mapping[str, Source], shelf: Shelf
) -> Generator[int, None, None]:
    """Yields the bytes of `sources` done so far, at least once per layer."""
    done = 0
    for site in found:
        source = sources.get(site.key)
        work = in_turns(partial(_packed, site, source, shelf), overlaps=True)
        packed = yield from _telling(work, done)
        module.set_submodule(site.name, packed)
        done += source.size_bytes if source is not None else 0
        yield done


def _telling(
    work: Generator[None, None, PackedLinear], done: int
) -> Generator[int, None, PackedLinear]:
    try:
        while True:
            next(work)
            yield done
    except StopIteration as stop:
        made: PackedLinear = stop.value
        return made
    finally:
        work.close()


def _packed(site: Site, source: Source | None, shelf: Shelf) -> PackedLinear:
    state = shelf.take(site.name)
    bias = None if site.layer.bias is None else site.layer.bias.detach()
    with torch.no_grad():
        if state is None:
            weight = site.layer.weight.detach() if source is None else source.read()
            made = linear.pack(weight, bias, site.plan)
        elif shelf.is_whole:
            made = linear.from_state(state, site.plan.device)
        else:
            held = site.layer.weight.detach
            dense = held if source is None else source.dense
            made = _completed(state, dense, bias, site.plan)
    told = partial(made.state, whole=shelf.is_whole)
    shelf.put(site.name, told, fresh=state is None)
    return made


def _completed(
    state: Mapping[str, torch.Tensor],
    weight: Callable[[], torch.Tensor],
    bias: torch.Tensor | None,
    plan: LinearPlan,
) -> PackedLinear:
    """Of a state that isn't whole; `weight` is the dense one [N, K]."""
    made = linear.from_state(dict(state), plan.device)
    if made.few_rows < linear.ALL_ROWS:
        processor = this_processor()
        made.many = linear.dense_kernel(weight(), bias, plan, processor)
    return made


def _is_packable(name: str, layer: Any) -> bool:
    return type(layer) is nn.Linear and name.rpartition(".")[2] not in _ROUTERS
