"""One model's way from tensors in files to a module with all its weights.

Device process. The skeleton on the meta device says which layers will be packed. Their
weights are read when their turn comes; in the module that transformers assembles from
the other tensors they have placeholders until then.

Invariant: whatever takes long runs in turns with the loop or beside it; closing the
generator ends it with no thread left.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch

from ipc.messages import LoadProgress
from neurond.converted import BLOCKS_FILE
from neurond.device import assembly, packing
from neurond.device.assembly import Kind
from neurond.device.packed import Shelf
from neurond.device.packing import Site, Source
from neurond.device.quant import Quant
from neurond.device.turns import in_background, in_turns
from neurond.device.weights import Entry, Reader, find_entries, read_header

T = TypeVar("T")
_NAMED_KEYS = 5
_FUSED = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(slots=True)
class Meter:
    """How much of the weights is there, in bytes of the files."""

    model: str
    done: int = 0
    total: int = 0

    def now(self) -> LoadProgress:
        return LoadProgress(self.model, "weights", self.done, self.total)


@dataclass(slots=True)
class Build:
    """`num_parameters` and `notes`, lines for the journal, are known after `run`."""

    folder: Path
    kind: Kind
    quant: Quant
    dtype: torch.dtype
    device: torch.device
    meter: Meter
    num_parameters: int = 0
    notes: tuple[str, ...] = ()

    def run(self, shelf: Shelf) -> Generator[LoadProgress, None, Any]:
        """The module with all its weights, packed as planned."""
        skeleton = yield from self._turns(lambda: assembly.skeleton(self.kind))
        self.num_parameters = skeleton.num_parameters()
        entries = find_entries(self.folder)
        yield self.meter.now()
        sources = self._sources(skeleton, entries)
        eager = [entry for entry in entries if entry.name not in sources]
        late_bytes = sum(source.size_bytes for source in sources.values())
        self.meter.total = late_bytes + sum(entry.size_bytes for entry in eager)
        tensors = yield from self._read(eager)
        for entry in entries:
            if entry.name in sources:
                hold = assembly.placeholder(entry, self.dtype, self.device)
                tensors[entry.name] = hold
        module, unexpected = yield from self._turns(
            lambda: assembly.place(self.kind, tensors, self.dtype, self.device)
        )
        found = packing.sites(module, self.quant)
        before = self.meter.done
        for done in packing.pack(module, found, sources, shelf):
            self.meter.done = before + done
            yield self.meter.now()
        yield from self._wait(in_background(shelf.write))
        if self.quant.fuses:
            yield from self._fuse(module)
        self.notes = (*_unexpected(unexpected), *shelf.notes)
        return module

    def _sources(self, skeleton: Any, entries: list[Entry]) -> dict[str, Source]:
        """By the names of weights that are read when they are packed.

        Those whose name or shape transformers converts first are read with the rest.
        """
        kept = _kept_blocks(self.folder) if self.quant.form.kind == "blocks" else {}
        known = {entry.name: entry for entry in entries}
        found = packing.sites(skeleton, self.quant)
        sources: dict[str, Source] = {}
        for site in found:
            entry = known.get(site.key)
            if entry is not None and entry.shape == tuple(site.layer.weight.shape):
                sources[site.key] = _source(site, entry, kept)
        return sources

    def _read(
        self, entries: list[Entry]
    ) -> Generator[LoadProgress, None, dict[str, torch.Tensor]]:
        reader = Reader(self.device)
        for done in reader.read(entries, self.dtype):
            self.meter.done = done
            yield self.meter.now()
        return reader.tensors

    def _fuse(self, module: Any) -> Generator[LoadProgress, None, None]:
        for family in _FUSED:  # classes that `fused` knows, a slice each to import
            import_module(f"transformers.models.{family}.modeling_{family}")
            yield self.meter.now()
        from neurond.device import fused

        yield from self._wait(in_turns(lambda: fused.fuse(module), overlaps=True))

    def _turns(self, call: Callable[[], T]) -> Generator[LoadProgress, None, T]:
        return self._wait(in_turns(call))

    def _wait(
        self, steps: Generator[None, None, T]
    ) -> Generator[LoadProgress, None, T]:
        """A message per slice of other work."""
        try:
            while True:
                next(steps)
                yield self.meter.now()
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            steps.close()


def _source(site: Site, entry: Entry, kept: dict[str, Entry]) -> Source:
    blocks = packing.from_blocks(site.name, kept, entry)
    if site.plan.kind == "blocks" and blocks is not None:
        return blocks
    return packing.from_entry(entry)


def _kept_blocks(folder: Path) -> dict[str, Entry]:
    return {entry.name: entry for entry in read_header(folder / BLOCKS_FILE)}


def _unexpected(keys: list[str]) -> list[str]:
    if not keys:
        return []
    named = ", ".join(keys[:_NAMED_KEYS])
    return [f"{len(keys)} tensors of the checkpoint are not used: {named}"]
