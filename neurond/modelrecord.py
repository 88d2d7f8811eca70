"""What the supervisor knows of one model.

Supervisor; owned by `lifecycle`. The status moves by the table in `states` alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ipc.errors import ClientError, ServiceError, cause_chain
from ipc.messages import Load, Loaded
from neurond.config import Model
from neurond.stages import PLAIN, Progress
from neurond.states import ModelEvent, ModelStatus, next_model_status

_WANTED = (
    ModelStatus.LOADED,
    ModelStatus.RECOVERING,
    ModelStatus.LOADING,
    ModelStatus.CONVERTING,
)

_MOST_LOST = 2


@dataclass(slots=True, eq=False)
class ModelRecord:
    """`done` ends when the load or unload under way does.

    `ordered` is what the load order said itself: that alone outlives a restart, the
    rest is the configuration's to say (`configured`). `allowed` names the devices that
    may hold it, `sent_generation` the life of its device that was last told to load it.
    `known` is what its load found out, for its device's next life, `num_lost` counts
    lives in a row that ended before it was there.
    """

    spec: Model
    status: ModelStatus = ModelStatus.UNLOADED
    since_s: float = field(default_factory=time.time)
    reason: str = ""
    devices: list[str] = field(default_factory=list)
    folder: str = ""
    digest: str = ""
    needed_bytes: int = 0
    loaded: Loaded | None = None
    load_seconds: float | None = None
    progress: Progress | None = None
    error: ServiceError | None = None
    done: asyncio.Future[None] | None = None
    num_load_deaths: int = 0
    num_lost: int = 0
    sent_generation: int = 0
    known: dict[str, Any] = field(default_factory=dict)
    ordered: dict[str, Any] = field(default_factory=dict)
    allowed: tuple[str, ...] = ()
    configured: Model = field(init=False)

    def __post_init__(self) -> None:
        self.configured = self.spec

    @property
    def is_busy(self) -> bool:
        """A load or unload is under way."""
        return self.done is not None and not self.done.done()

    @property
    def is_wanted(self) -> bool:
        """It is there, comes, or comes back."""
        return self.status in _WANTED

    def move(self, event: ModelEvent) -> None:
        """Raises IllegalTransition."""
        before = self.status
        self.status = next_model_status(before, event)
        if self.status is not before:
            self.since_s = time.time()

    def begin(self, progress: Progress) -> asyncio.Future[None]:
        """A load: forget the last outcome, start to count."""
        self.error, self.reason = None, ""
        self.progress = progress
        self.num_load_deaths = self.num_lost = 0
        self.known = {}
        return self.begin_wait()

    def begin_wait(self) -> asyncio.Future[None]:
        self.done = asyncio.get_running_loop().create_future()
        self.done.add_done_callback(_retrieve)
        return self.done

    def succeed(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.known = loaded.info.pop("known", {})
        self.num_lost = 0
        self.progress = None
        self.reason = ""
        self.end()

    def lost(self) -> None:
        """Its device died. After a second one on the way, nothing is taken as known."""
        if self.loaded is None:
            self.num_lost += 1
        if self.num_lost >= _MOST_LOST:
            self.known = {}
        self.loaded = None

    def fail(self, error: ServiceError) -> None:
        self.error = error
        self.reason = error.message
        self.progress = None
        self.loaded = None
        self.devices.clear()
        self.break_off(error)

    def break_off(self, error: ServiceError) -> None:
        """Whoever waits hears why."""
        if self.is_busy and self.done is not None:
            self.done.set_exception(error)

    def end(self) -> None:
        if self.is_busy and self.done is not None:
            self.done.set_result(None)

    def respecify(self, ordered: Mapping[str, Any]) -> None:
        """What a load order says beyond the configuration.

        Nothing of an earlier order stays but the source, without which a model that
        isn't configured would be lost.
        """
        self.ordered = dict(ordered)
        changes = {k: v for k, v in ordered.items() if k != "devices"}
        kept = {"source": self.spec.source, **changes}
        self.spec = replace(self.configured, **kept)

    def load_on(self, generation: int, *, again: bool = False) -> Load:
        """The order for that life of its device, which may now be blamed on it.

        `again`: the device has had it, and serves nobody until it has it back.
        """
        self.sent_generation = generation
        message = self.load_message()
        return replace(message, known=self.known, alone=True) if again else message

    def load_message(self) -> Load:
        """What its device is sent."""
        spec = self.spec
        return Load(
            model=spec.id,
            folder=self.folder,
            dtype=spec.dtype,
            quant=spec.quant,
            context=spec.context,
            options=dict(spec.options),
        )

    def error_wire(self) -> list[Any] | None:
        if self.error is None:
            return None
        wire = self.error.to_wire()
        wire[5] = list(self.error.chain or cause_chain(self.error)[1:])
        return wire


def new_record(model: str, given: Mapping[str, Any]) -> ModelRecord:
    """For a model that the configuration doesn't know. Raises ClientError."""
    source = given.get("source")
    if not source:
        raise unknown(model)
    return ModelRecord(Model(model, source))


def outcome(told: Loaded) -> dict[str, Any]:
    """What the journal says of a load that is done."""
    return {
        "model": told.model,
        "seconds": told.seconds,
        "context": told.context,
        "context_limited_by": told.info.get("context_limited_by"),
    }


def strangers(records: Mapping[str, ModelRecord]) -> list[str]:
    """Models that only failed orders named, oldest first."""
    return [
        name
        for name, record in records.items()
        if record.status is ModelStatus.FAILED and "source" in record.ordered
    ]


def unknown(model: str) -> ClientError:
    words = f"model {model} is not known here, and no source was given"
    return ClientError(words, code="model_not_found", param="model_id")


def new_progress() -> Progress:
    return Progress(PLAIN, time.monotonic())


def _retrieve(done: asyncio.Future[None]) -> None:
    """A failure that nobody waits for stands in the record."""
    if not done.cancelled():
        done.exception()
