"""The backend without torch: scripted tokens, scripted faults, the real protocol.

Device process. It ships with the product, so that a whole node, faults included, runs
where there is no GPU and no model. Everything is deterministic; time passes only where
an option says so.

Options of a load: step_ms, prefill_ms, load_ms, load_fail (true or an error code),
kind ("embedding" gives vectors, with matryoshka = true ones that may be cut short),
tokens ("echo" | "count" | [ids]), fault {"kind", "at_step"}, memory_bytes (what the
model holds), free_after_ms (how late its bytes come back). See `fakecache` for those
of the cache, `fakegrammar` for grammars, `fakescript` for what a request can ask for.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ipc.errors import TABLE, error_for
from ipc.messages import Load, LoadProgress
from neurond.device import standins
from neurond.device.backend import (
    GoldenSteps,
    LoadSteps,
    Memory,
    Outcome,
    Resident,
    Row,
    Work,
)
from neurond.device.fakecache import (
    FakeCache,
    cache_spec,
    logprob,
    prompt_scores,
    top_scores,
)
from neurond.device.fakegrammar import FakeGrammars
from neurond.device.fakescript import (
    DIMENSIONS,
    IM_END,
    VOCAB_SIZE,
    Script,
    script_for,
    vector,
)
from neurond.device.sequence import Sequence as Running
from neurond.device.verdict import nan_error

_DEFAULT_MEMORY_BYTES = 8 << 30
_DEFAULT_MODEL_BYTES = 64 << 20
_SLICE_S = 0.02


class _FakeModel:
    """Body of a resident fake: its options and how many steps it has taken."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.num_steps = 0
        told = options.get("fault") or {}
        self.fault = str(told.get("kind", ""))
        self.fault_at_step = int(told.get("at_step", 0))


class FakeBackend:
    name = "fake"
    max_rows = 256

    def __init__(
        self,
        memory_bytes: int = 0,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_bytes = memory_bytes or _DEFAULT_MEMORY_BYTES
        self._resident: dict[str, int] = {}
        self._returning: list[tuple[float, int]] = []
        self._poisoned = False
        self._sleep = sleep
        self._grammars = FakeGrammars(clock)

    def open(self) -> Memory:
        return self.memory()

    def memory(self) -> Memory:
        now_s = time.monotonic()
        self._returning = [item for item in self._returning if item[0] > now_s]
        held = sum(self._resident.values()) + sum(b for _, b in self._returning)
        return Memory(self._total_bytes, self._total_bytes - held)

    def load(self, spec: Load) -> LoadSteps:
        context = _context(spec)
        size_bytes = int(spec.options.get("memory_bytes", _DEFAULT_MODEL_BYTES))
        if size_bytes > self.memory().free_bytes:
            raise error_for("insufficient_vram", f"{size_bytes} bytes don't fit")
        num_slices = max(1, round(spec.options.get("load_ms", 0) / 1e3 / _SLICE_S))
        for index in range(num_slices):
            if spec.options.get("load_ms"):
                self._sleep(_SLICE_S)
            done = size_bytes * (index + 1) // num_slices
            yield LoadProgress(spec.model, "weights", done, size_bytes)
        _fail_if_told(spec.options.get("load_fail"))
        self._resident[spec.model] = size_bytes
        return _resident(spec, context, size_bytes)

    def golden(self, model: Resident) -> GoldenSteps:
        self.probe(idle=True)
        yield from ()
        return str(model.body.options.get("golden", "fake"))

    def unload(self, model: Resident) -> None:
        size_bytes = self._resident.pop(model.name)
        late_s = model.body.options.get("free_after_ms", 0) / 1e3
        if late_s:
            self._returning.append((time.monotonic() + late_s, size_bytes))

    def forward(self, works: Sequence[Work]) -> list[Outcome]:
        caches = [_cache(work.sequence) for work in works]
        model = works[0].sequence.model.body
        pairs = list(zip(works, caches, strict=True))
        done = [cache.go_on(work) for work, cache in pairs]
        self._pass_time(model, pairs)
        self._fire_model_fault(model, sum(work.num_ids for work in works))
        rows = [
            self._row(work, cache.script) if whole else Row(paused=True)
            for (work, cache), whole in zip(pairs, done, strict=True)
        ]
        for (work, cache), whole in zip(pairs, done, strict=True):
            if whole:
                cache.advance(work)
        return rows

    def prepare(self, sequence: Running) -> None:
        self._grammars.prepare(sequence)

    def is_ready(self, sequence: Running) -> bool:
        return self._grammars.is_ready(sequence)

    def clear_pages(self, model: Resident, pages: Sequence[int]) -> None:
        pass

    def copy_page(
        self, model: Resident, source: int, target: int, num_tokens: int
    ) -> None:
        pass

    def save_state(self, sequence: Running) -> Any:
        return _cache(sequence).num_tokens

    def load_state(self, sequence: Running, state: Any) -> None:
        _cache(sequence).num_tokens = state

    def release(self, sequence: Running) -> None:
        sequence.cache = None

    def probe(self, *, idle: bool = False) -> None:
        if self._poisoned:
            _raise_device_assert()

    def _pass_time(
        self, model: _FakeModel, pairs: Sequence[tuple[Work, FakeCache]]
    ) -> None:
        filling = [(w, c) for w, c in pairs if not w.sequence.decodes]
        steps = [c.script.step_ms for w, c in pairs if w.sequence.decodes]
        chunks = [c.script.prefill_ms for _, c in filling]
        num_tokens = sum(w.num_ids / c.num_stints for w, c in filling)
        tokens_ms = num_tokens * model.options.get("token_ms", 0)
        duration_ms = max(steps, default=0) + max(chunks, default=0) + tokens_ms
        if duration_ms > 0:
            self._sleep(duration_ms / 1e3)

    def _fire_model_fault(self, model: _FakeModel, num_tokens: int) -> None:
        if num_tokens > model.options.get("oom_tokens", num_tokens):
            self._fire("oom")
        model.num_steps += 1
        if model.fault and model.num_steps == model.fault_at_step:
            self._fire(model.fault)

    def _row(self, work: Work, script: Script) -> Outcome:
        if work.sequence.submit.embed:
            return Row(vector=vector(work.sequence.ids))
        sequence = work.sequence
        scores = prompt_scores(work)
        if not work.draws or sequence.full:
            return Row(prompt=scores)
        index = sequence.num_emitted
        fault = script.fault_now(index, sequence.submit.attempt)
        if fault == "nan":
            return nan_error()
        if fault:
            self._fire(fault)
        token = script.token(index)
        if token in sequence.banned_ids:
            token = ord(".")
        top = top_scores(token, sequence.submit.sampling.logprobs)
        return Row(token, logprob(token), top, scores)

    def _fire(self, kind: str) -> None:
        if kind == "device_assert":
            self._poisoned = True
        _FAULTS[kind]()


def _cache(sequence: Running) -> FakeCache:
    if sequence.cache is None:
        submit = sequence.submit
        prompt = submit.ids[: submit.num_prompt]
        options = sequence.model.body.options
        script = script_for(prompt, options, submit.max_tokens)
        sequence.cache = FakeCache(script)
    cache: FakeCache = sequence.cache
    return cache


def _context(spec: Load) -> int:
    try:
        config = json.loads((Path(spec.folder) / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise error_for("load_failed", "config.json can't be read") from error
    if config.get("model_type") != "fake":
        raise error_for("load_failed", "a fake device loads fake models only")
    longest = int(config["max_position_embeddings"])
    return min(spec.context, longest) if spec.context else longest


def _resident(spec: Load, context: int, size_bytes: int) -> Resident:
    info = {
        "architecture": "fake",
        "dtype": "none",
        "quant": "none",
        "num_parameters": 0,
        "vocab_size": VOCAB_SIZE,
        "has_vision": False,
        "kind": "chat",
    }
    token_ms = float(spec.options.get("token_ms", 0))
    if spec.options.get("kind") == "embedding":
        matryoshka = spec.options.get("matryoshka") is True
        info.update(kind="embedding", dimensions=DIMENSIONS, matryoshka=matryoshka)
    return Resident(
        name=spec.model,
        context=context,
        vocab_size=VOCAB_SIZE,
        eos_ids=frozenset({IM_END}),
        resident_bytes=size_bytes,
        info=info,
        body=_FakeModel(spec.options),
        cache=cache_spec(spec.options),
        prefill_tokens_s=1e3 / token_ms if token_ms else 0.0,
        pauses=bool(spec.options.get("pauses")),
    )


def _fail_if_told(told: Any) -> None:
    if told:
        code = told if told in TABLE else "load_failed"
        raise error_for(code, "this load was told to fail")


def _raise_device_assert() -> NoReturn:
    raise standins.poison("device_assert")


def _raise_host_error() -> NoReturn:
    raise LookupError("no such handle")


def _raise_nan() -> NoReturn:
    raise nan_error()


_FAULTS: dict[str, Callable[[], object]] = {
    **standins.ENDS,
    "exit111": lambda: os._exit(111),
    "nan": _raise_nan,
    "host_error": _raise_host_error,
    "device_assert": _raise_device_assert,
    "shape": standins.wrong_shape,
    "oom": standins.out_of_memory,
}
