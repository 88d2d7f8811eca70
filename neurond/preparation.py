"""From a model's source to a folder that a device can load.

Supervisor. The disk is read in threads that nobody waits for, a conversion runs in a
process of its own; here stands only who waits for what.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ipc.errors import error_for
from ipc.messages import Convert
from neurond import converted, disk, needs, sources
from neurond.config import Model
from neurond.effects import Effects
from neurond.modelrecord import ModelRecord
from neurond.needs import Needs
from neurond.stages import WITH_CONVERSION, Progress
from neurond.states import ModelEvent, ModelStatus


@dataclass(frozen=True, slots=True)
class Preparation:
    effects: Effects

    async def run(self, record: ModelRecord) -> None:
        """The record has its folder and what it will hold. Raises ServiceError."""
        spec, cache = record.spec, self.effects.cache
        source = await disk.read(lambda: sources.resolve(spec, cache))
        record.digest = source.digest
        if source.kind == "fake":
            _build_fake(spec, source.folder)
            record.folder = str(source.folder)
            record.needed_bytes = int(spec.options.get("memory_bytes", 0))
            return
        if source.file is not None and not sources.is_converted(source):
            await self._convert(record, source.file, source.folder)
        record.folder = str(source.folder)
        on_cpu = not any(device.startswith("gpu") for device in record.allowed)
        folder = source.folder
        found = await disk.read(lambda: _needs(spec, folder, on_cpu=on_cpu))
        record.needed_bytes = found.total_bytes

    async def held(self, record: ModelRecord) -> Path:
        """Where the model's tokenizer is, whether it is loaded or not.

        Raises ServiceError: no such files, or a GGUF that was never converted.
        """
        spec, cache = record.spec, self.effects.cache
        source = await disk.read(lambda: sources.resolve(spec, cache))
        if source.kind == "fake":
            _build_fake(spec, source.folder)
        elif not await disk.read(lambda: sources.has_tokenizer(source.folder)):
            text = f"the files of model {spec.id} are not prepared yet; load it once"
            raise error_for("no_healthy_node", text)
        return source.folder

    async def _convert(self, record: ModelRecord, file: Path, folder: Path) -> None:
        progress = record.progress = Progress(WITH_CONVERSION, time.monotonic())
        record.move(ModelEvent.CONVERT)
        self.effects.changed()

        def on_progress(done: int, total: int) -> None:
            progress.report("converting", done, total)
            self.effects.changed()

        folder.parent.mkdir(parents=True, exist_ok=True)
        spec = record.spec
        may = converted.may_dequantise(spec.quant, spec.options)
        order = Convert(str(file), str(folder), may)
        await self.effects.converter.convert(order, on_progress)
        if record.status is ModelStatus.CONVERTING:
            record.move(ModelEvent.LOAD)


def _needs(spec: Model, folder: Path, *, on_cpu: bool) -> Needs:
    """Of a folder that can be loaded and asked. Raises ServiceError."""
    sources.check(spec.id, folder)
    return needs.of(spec, folder, on_cpu=on_cpu)


def _build_fake(spec: Model, folder: Path) -> None:
    from neurond.device.fakemodel import build

    build(folder, **({"context": spec.context} if spec.context else {}))
