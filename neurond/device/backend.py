"""What the engine asks of whatever computes: torch on a CPU or GPU, or the fake.

Device process, torch-free. The engine decides which sequences move and by how many
ids; a backend loads models and computes rows. It never sees a ring.
"""

from __future__ import annotations

from collections.abc import Generator
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ipc.errors import ServiceError
from ipc.messages import Load, LoadProgress

if TYPE_CHECKING:
    from neurond.device.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the device as a whole."""

    total_bytes: int
    free_bytes: int


@dataclass(slots=True)
class Resident:
    """A loaded model. `body` is the backend's own; `slot` is its row on the page."""

    name: str
    context: int
    vocab_size: int
    eos_ids: frozenset[int]
    resident_bytes: int
    info: dict[str, Any]
    body: Any = field(repr=False, default=None)
    slot: int = -1
    last_used_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """Compute the next `num_ids` pending ids of a sequence."""

    sequence: Sequence
    num_ids: int

    @property
    def draws(self) -> bool:
        """Whether a token comes out: only behind the last pending id."""
        return self.num_ids == self.sequence.num_pending


Outcome = int | ServiceError | None
"""The drawn token; why this row alone failed; nothing yet (more prefill to come)."""

LoadSteps = Generator[LoadProgress, None, Resident]
"""A load in slices of at most about 50 ms, so that running streams go on."""


class Backend(Protocol):
    """`max_rows` = how many one-id rows a forward takes."""

    name: str
    max_rows: int

    def open(self) -> Memory:
        """Make the device usable. May block; the caller has armed a deadline."""

    def memory(self) -> Memory: ...

    def load(self, spec: Load) -> LoadSteps: ...

    def unload(self, model: Resident) -> None: ...

    def forward(self, works: Listing[Work]) -> list[Outcome]:
        """One outcome per work, in order. Raises when the forward as a whole failed."""

    def release(self, sequence: Sequence) -> None:
        """Drop the sequence's cache."""

    def probe(self) -> None:
        """Compute something known. Raises when the device can't be trusted."""
