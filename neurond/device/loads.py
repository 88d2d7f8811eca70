"""Loads in progress on one device, advanced a slice at a time between steps.

Device process, torch-free. One at a time, in the order of asking; the supervisor has
made room before it asked. What a load raises ends that load (LoadFailed); only a fault
of the device ends the process.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from ipc.errors import ServiceError, cause_chain, error_for
from ipc.journal import Journal
from ipc.messages import LinkUp, Load, Loaded, LoadFailed, LoadProgress
from ipc.status import Phase, StatusWriter
from neurond.device.backend import Backend, LoadSteps, Resident
from neurond.device.verdict import FATAL_CLASSES, died, fault_class

_PROGRESS_EVERY_S = 0.1
_GOLDEN_S = 120.0
"""A device that hangs in it is found in less time than a load may take."""


class Loads:
    """Owns the generators of the loads under way."""

    def __init__(  # noqa: PLR0913  the process's collaborators
        self,
        backend: Backend,
        page: StatusWriter,
        *,
        generation: int,
        deadline_s: float,
        golden_s: float = _GOLDEN_S,
        on_loaded: Callable[[Resident], None],
        journal: Journal | None = None,
    ) -> None:
        """`deadline_s` is for a whole load, `golden_s` for its golden result."""
        self._backend = backend
        self._page = page
        self._generation = generation
        self._deadline_s = deadline_s
        self._golden_s = golden_s
        self._on_loaded = on_loaded
        self._journal = journal
        self._waiting: deque[Load] = deque()
        self._steps: LoadSteps | None = None
        self._started_s = 0.0
        self._ends_s = 0.0
        self._told_s = 0.0

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def add(self, spec: Load) -> None:
        if all(other.model != spec.model for other in self._waiting):
            self._waiting.append(spec)

    def cancel(self, model: str) -> None:
        """Drop the load of this model, begun or not."""
        if self._waiting and self._waiting[0].model == model:
            self._done()
        else:
            kept = [spec for spec in self._waiting if spec.model != model]
            self._waiting = deque(kept)

    def advance(self) -> list[LinkUp]:
        """One slice. Raises DeviceDied."""
        spec = self._waiting[0]
        if self._steps is None:
            self._steps = self._load(spec)
            self._started_s = time.monotonic()
            self._ends_s = self._started_s + self._deadline_s
        self._arm()
        try:
            return self._tell(next(self._steps))
        except StopIteration as stop:
            return [self._loaded(stop.value)]
        except Exception as error:  # the step border: whatever files can provoke
            return [self._failed(spec, error)]
        finally:
            self._page.idle()

    def _load(self, spec: Load) -> LoadSteps:
        """A load is done when the model has shown what it computes (S19)."""
        with ExitStack() as undo:
            model = yield from self._backend.load(spec)
            undo.callback(self._backend.unload, model)
            self._ends_s = min(self._ends_s, time.monotonic() + self._golden_s)
            self._arm()
            model.info["golden"] = yield from self._backend.golden(model)
            undo.pop_all()
        return model

    def _arm(self) -> None:
        left_s = self._ends_s - time.monotonic()
        self._page.arm(Phase.LOAD, max(left_s, 0.001))

    def _tell(self, progress: LoadProgress) -> list[LinkUp]:
        """Not every slice is worth a message."""
        now_s = time.monotonic()
        last = progress.done >= progress.total
        if not last and now_s < self._told_s + _PROGRESS_EVERY_S:
            return []
        self._told_s = now_s
        return [progress]

    def _loaded(self, model: Resident) -> Loaded:
        if model.context == self._waiting[0].context:
            model.limited_by = "setting"
        self._done()
        for note in model.info.pop("notes", ()):
            if self._journal is not None:
                self._journal.warning(note, event="load.note", model=model.name)
        self._on_loaded(model)
        return Loaded(
            model=model.name,
            context=model.context,
            resident_bytes=model.resident_bytes,
            seconds=time.monotonic() - self._started_s,
            info={**model.info, **_limits(model)},
        )

    def _failed(self, spec: Load, error: Exception) -> LoadFailed:
        self._done()
        if fault_class(error) in FATAL_CLASSES:
            raise died(
                error, model=spec.model, generation=self._generation, requests=()
            ) from error
        if not isinstance(error, ServiceError):
            code = "insufficient_vram" if _no_memory(error) else "load_failed"
            text = "the model's files could not be loaded"
            error = error_for(code, text, chain=cause_chain(error))
        return LoadFailed(spec.model, error.to_wire())

    def _done(self) -> None:
        self._waiting.popleft()
        if self._steps is not None:
            self._steps.close()
            self._steps = None


def _limits(model: Resident) -> dict[str, Any]:
    """Of its sequences: why they are no longer, what they take."""
    page = model.cache
    return {
        "context_limited_by": model.limited_by,
        "page_tokens": page.page_tokens,
        "bytes_per_token": page.page_bytes // page.page_tokens,
    }


def _no_memory(error: Exception) -> bool:
    return fault_class(error) == "capacity"
