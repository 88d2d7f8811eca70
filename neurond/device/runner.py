"""The torch backend: unmodified transformers models, one cache per sequence.

Device process; one model.forward per step, for one sequence, with a DynamicCache of its
own. That works for every architecture. Batching over a shared cache comes beside it and
changes `max_rows` and `forward`, nothing outside this module.

Invariant: a row with NaN never leaves; its error is its own.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence as Listing
from typing import Any

import psutil
import torch

from ipc.messages import Load
from neurond.device import encoder, loader
from neurond.device.backend import LoadSteps, Memory, Outcome, Resident, Row, Work
from neurond.device.probe import probe
from neurond.device.sampler import draw, is_plain_greedy, uniform
from neurond.device.sequence import Sequence
from neurond.device.settings import DeviceSettings
from neurond.device.verdict import nan_error


class TorchBackend:
    max_rows = 1

    def __init__(self, kind: str, settings: DeviceSettings) -> None:
        self.name = kind
        self._settings = settings
        self._device = torch.device("cuda:0" if kind == "cuda" else "cpu")
        self._resident_bytes: dict[str, int] = {}

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
            return _cuda_memory(self._device)
        host = psutil.virtual_memory()
        total = self._settings.memory_bytes or host.total // 2
        held = sum(self._resident_bytes.values())
        return Memory(total, max(0, min(total - held, host.available)))

    def load(self, spec: Load) -> LoadSteps:
        model = yield from loader.load(spec, self._device)
        self._resident_bytes[model.name] = model.resident_bytes
        return model

    def unload(self, model: Resident) -> None:
        del self._resident_bytes[model.name]
        model.body = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def prepare(self, sequence: Sequence) -> None:
        pass

    def clear_pages(self, model: Resident, pages: Listing[int]) -> None:
        pass

    def copy_page(
        self, model: Resident, source: int, target: int, num_tokens: int
    ) -> None:
        pass

    def save_state(self, sequence: Sequence) -> Any:
        return None

    def load_state(self, sequence: Sequence, state: Any) -> None:
        pass

    def release(self, sequence: Sequence) -> None:
        sequence.cache = None

    def probe(self) -> None:
        probe(self._device)

    def forward(self, works: Listing[Work]) -> list[Outcome]:
        with torch.inference_mode():
            if isinstance(works[0].sequence.model.body, encoder.EncoderBody):
                return encoder.forward(works)
            return [self._compute(work) for work in works]

    def _compute(self, work: Work) -> Outcome:
        sequence = work.sequence
        body: loader.Body = sequence.model.body
        if sequence.cache is None:
            sequence.cache = _new_cache(body)
        logits = _forward(body, sequence, work.num_ids)
        if work.draws:
            return _draw(logits, sequence)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # a fault shows in its own step
        return Row()


def _new_cache(body: loader.Body) -> Any:
    from transformers.cache_utils import DynamicCache

    return DynamicCache(config=body.module.config.get_text_config())


def _forward(body: loader.Body, sequence: Sequence, num_ids: int) -> torch.Tensor:
    """Logits of the last of the next `num_ids` ids."""
    begin = sequence.num_computed
    end = begin + num_ids
    device = body.device
    more = {"logits_to_keep": 1} if body.last_only else {}
    output = body.module(
        input_ids=torch.tensor([sequence.ids[begin:end]], device=device),
        position_ids=torch.arange(begin, end, device=device)[None],
        past_key_values=sequence.cache,
        use_cache=True,
        **more,
    )
    return output.logits[0, -1]


def _draw(logits: torch.Tensor, sequence: Sequence) -> Outcome:
    """Greedy needs one reduction on the device; anything else, the row on the host."""
    submit = sequence.submit
    banned = sequence.banned_ids
    best, token = logits.max(-1)  # NaN and +inf win every comparison
    if not torch.isfinite(best).item():
        return nan_error()
    if is_plain_greedy(submit.sampling, banned):
        return Row(int(token.item()))
    token_id = draw(
        logits.float().cpu().numpy(),
        submit.sampling,
        prompt=submit.ids[: submit.num_prompt],
        emitted=sequence.ids[submit.num_prompt :],
        banned=banned,
        number=uniform(submit.seed, submit.choice, sequence.num_emitted),
    )
    return Row(token_id)


def _cuda_memory(device: torch.device) -> Memory:
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Memory(total, free + unused)


def _num_threads(settings: DeviceSettings) -> int:
    """Told, or an equal share of the cores that we may use."""
    cores = len(os.sched_getaffinity(0))
    return settings.threads or max(1, cores // max(1, settings.count))
