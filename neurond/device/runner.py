"""The torch backend: unmodified transformers models over paged KV.

Device process. A load ends with a trial that decides how the model keeps its KV; a
forward computes any mix of prefill chunks and decode rows of one model and draws the
tokens that are due.

Invariants: a row with NaN never leaves, its error is its own; on CUDA a step waits for
the device once, where its tokens are read, and then looks at its chunks of prefill.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Generator
from collections.abc import Sequence as Listing
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from ipc.messages import Load, LoadProgress
from neurond.device import encoder, golden, loader, soundness, varlen
from neurond.device.backend import (
    GoldenSteps,
    LoadSteps,
    Memory,
    Outcome,
    Resident,
    Row,
    Work,
)
from neurond.device.budget import kv_budget_bytes
from neurond.device.computing import Computing
from neurond.device.drawing import drawing, outcomes
from neurond.device.invariant import make_invariant
from neurond.device.known import Known
from neurond.device.masks import Filling, Masks
from neurond.device.numerics import is_invariant
from neurond.device.pagedmodel import PagedModel
from neurond.device.probe import cuda_memory, give_back, probe
from neurond.device.sampler import Sampler
from neurond.device.sequence import Sequence
from neurond.device.settings import DeviceSettings
from neurond.device.stopwatch import measure
from neurond.device.trial import make_ready
from neurond.device.turns import in_one_go

Made = TypeVar("Made")

_PAGE_TOKENS = {"cpu": 64, "cuda": 256}  # FlashAttention reads pages of 256


class TorchBackend:
    max_rows = 256

    def __init__(self, kind: str, settings: DeviceSettings) -> None:
        self.name = kind
        self._settings = settings
        self._device = torch.device("cuda:0" if kind == "cuda" else "cpu")
        self._resident_bytes: dict[str, int] = {}
        self._models: dict[str, Computing] = {}
        self._masks: dict[str, Masks] = {}
        self._sampler = Sampler(self._device)
        self._serves_nobody = False

    def open(self) -> Memory:
        torch.set_num_threads(_num_threads(self._settings))
        if self._device.type == "cuda":
            torch.cuda.init()
            torch.cuda.set_device(self._device)
        loader.quiet_transformers()
        probe(self._device)
        return self.memory()

    def memory(self) -> Memory:
        if self._device.type == "cuda":
            return cuda_memory(self._device)
        host = psutil.virtual_memory()
        total = self._settings.memory_bytes or host.total // 2
        held = sum(self._resident_bytes.values())
        return Memory(total, max(0, min(total - held, host.available)))

    def load(self, spec: Load) -> LoadSteps:
        self._serves_nobody = spec.alone
        steps = self._load(spec)
        return (yield from in_one_go(steps) if spec.alone else steps)

    def golden(self, model: Resident) -> GoldenSteps:
        steps = self._golden(model)
        return (yield from in_one_go(steps) if self._serves_nobody else steps)

    def _load(self, spec: Load) -> LoadSteps:
        invariant = is_invariant(spec.options, self._settings)
        known = loader.known_of(spec, self._device, self._settings)
        model = yield from loader.load(spec, self._device, self._settings, known)
        model.info["numerics"] = "invariant" if invariant else "fast"
        if not isinstance(model.body, encoder.EncoderBody):
            yield from self._make_ready(model, known)
            self._masks[model.name] = self._new_masks(model, spec)
            model.info["known"] = known.told()
        self._resident_bytes[model.name] = model.resident_bytes
        return model

    def _new_masks(self, model: Resident, spec: Load) -> Masks:
        """Their tokenizer at once, unless streams run already, or wait."""
        now = not self._masks and not spec.alone
        return Masks(Path(spec.folder), model.vocab_size, model.eos_ids, build_now=now)

    def _golden(self, model: Resident) -> GoldenSteps:
        probe(self._device)
        computing = self._models.get(model.name)
        if computing is None:
            return (yield from _warming(model, golden.of_vector(model)))
        alone = len(self._resident_bytes) == 1  # or others may be streaming
        steps = golden.of_tokens(model, computing, alone=alone)
        return (yield from _warming(model, steps))

    def unload(self, model: Resident) -> None:
        del self._resident_bytes[model.name]
        self._models.pop(model.name, None)
        masks = self._masks.pop(model.name, None)
        if masks is not None:
            masks.close()
        model.body = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def prepare(self, sequence: Sequence) -> None:
        masks = self._masks.get(sequence.model.name)
        if masks is not None:
            masks.prepare(sequence)

    def is_ready(self, sequence: Sequence) -> bool:
        masks = self._masks.get(sequence.model.name)
        return masks is None or masks.is_ready(sequence)

    def clear_pages(self, model: Resident, pages: Listing[int]) -> None:
        with torch.inference_mode():
            self._models[model.name].clear_pages(pages)

    def copy_page(
        self, model: Resident, source: int, target: int, num_tokens: int
    ) -> None:
        with torch.inference_mode():
            self._models[model.name].copy_page(source, target, num_tokens)

    def save_state(self, sequence: Sequence) -> Any:
        with torch.inference_mode():
            return self._models[sequence.model.name].save_state(sequence)

    def load_state(self, sequence: Sequence, state: Any) -> None:
        with torch.inference_mode():
            self._models[sequence.model.name].load_state(sequence, state)

    def release(self, sequence: Sequence) -> None:
        computing = self._models.get(sequence.model.name)
        if computing is not None and sequence.cache is not None:
            computing.release(sequence)
        masks = self._masks.get(sequence.model.name)
        if masks is not None:
            masks.release(sequence)
        self._sampler.release(sequence)
        sequence.cache = None

    def probe(self, *, idle: bool = False) -> None:
        if not idle:
            give_back(self._device)
        probe(self._device)
        for masks in self._masks.values() if idle else ():
            masks.warm()

    def forward(self, works: Listing[Work]) -> list[Outcome]:
        with torch.inference_mode():
            if isinstance(works[0].sequence.model.body, encoder.EncoderBody):
                alone = works[0].sequence.model.info["numerics"] == "invariant"
                return encoder.forward(works, alone=alone)
            found = self._compute(works)
        if self._device.type == "cuda" and not drawing(works):
            torch.cuda.synchronize(self._device)  # a fault shows in its own step
        return found

    def _compute(self, works: Listing[Work]) -> list[Outcome]:
        """Whole works first, then one that may pause; grammars hear of tokens when
        nothing can raise any more that would have the step repeated."""
        begun_s = time.perf_counter()
        name = works[0].sequence.model.name
        model, masks = self._models[name], self._masks[name]
        whole = [work for work in works if not work.pause_s]
        filling = _filling(masks, whole)  # on a side thread while the model computes
        logits = model.compute(whole) if whole else None
        late = [
            (work, model.go_on(work, begun_s + work.pause_s - time.perf_counter()))
            for work in works
            if work.pause_s
        ]
        found: list[Outcome] = []
        if logits is not None:
            found += outcomes(whole, logits, self._sampler, filling.take())
        for work, last in late:
            if last is None:
                found.append(Row(paused=True))
            else:
                bitmask = _filling(masks, [work]).take()
                found += outcomes([work], last, self._sampler, bitmask)
        soundness.judge(model, works, found)
        for index in drawing(works):
            outcome = found[index]
            if isinstance(outcome, Row) and outcome.token is not None:
                masks.accept(works[index].sequence, outcome.token)
        return found

    def _make_ready(
        self, model: Resident, known: Known
    ) -> Generator[LoadProgress, None, None]:
        page_tokens = self._settings.page_tokens or _PAGE_TOKENS[self._device.type]
        invariant = model.info["numerics"] == "invariant"
        kernel = varlen.kernel_for(self._device, page_tokens, invariant=invariant)
        steps = make_ready(model, page_tokens, self._kv_bytes(model), kernel, known)
        computing = yield from _warming(model, steps)
        if invariant:
            limit_s = self._settings.load_deadline_s * _SELF_TEST_SHARE
            proof = make_invariant(model, computing, limit_s, known)
            computing = yield from _warming(model, proof)
        if isinstance(computing, PagedModel) and self._device.type == "cuda":
            yield from self._capture(model, computing)
        if not known.prefill_tokens_s:
            runs = measure(model, computing, self._settings.first_token_target_s)
            known.prefill_tokens_s = yield from _warming(model, runs)
        model.prefill_tokens_s = known.prefill_tokens_s
        self._models[model.name] = computing
        model.cache = computing.spec
        on_cpu = self._device.type == "cpu"
        model.pauses = (
            on_cpu and isinstance(computing, PagedModel) and computing.can_pause
        )
        yield LoadProgress(model.name, "warmup", 1, 1)

    def _capture(
        self, model: Resident, paged: PagedModel
    ) -> Generator[LoadProgress, None, None]:
        recorder = paged.cuda_recorder()
        if recorder is None:
            return
        steps = paged.capture(recorder, self._settings.max_running, model.context)
        while True:
            # never open across a yield: other models' forwards run in between
            with torch.inference_mode():
                done = next(steps, None)
            if done is None:
                return
            yield LoadProgress(model.name, "capture", *done)

    def _kv_bytes(self, model: Resident) -> int:
        """For this model's pool: on a CPU memory is taken when it is written; on CUDA
        now, so what other pools hold is gone."""
        held = sum(self._resident_bytes.values()) + model.resident_bytes
        memory = self.memory()
        budget = kv_budget_bytes(self._settings, self.name, memory, held)
        if self._device.type == "cpu":
            return budget
        return min(budget, int(memory.free_bytes * _CUDA_POOL_SHARE))


def _filling(masks: Masks, works: Listing[Work]) -> Filling:
    return masks.begin([works[index].sequence for index in drawing(works)])


_CUDA_POOL_SHARE = 0.9
_SELF_TEST_SHARE = 0.5
"""Of the time that a load has."""


def _warming(
    model: Resident, steps: Generator[None, None, Made]
) -> Generator[LoadProgress, None, Made]:
    """The slices of a warm-up as a load's."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            made: Made = done.value
            return made
        yield LoadProgress(model.name, "warmup", 0, 1)


def _num_threads(settings: DeviceSettings) -> int:
    """Told, or an equal share of the cores that we may use.

    For invariant numerics a power of two: torch cuts an operation into as many equal
    parts, and a part that ends beside a vector's border has other bits there.
    """
    cores = len(os.sched_getaffinity(0))
    count = settings.threads or max(1, cores // max(1, settings.count))
    if settings.numerics == "invariant":
        return 1 << count.bit_length() - 1
    return count
