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
from ipc.messages import Load, LoadProgress, TopScores

if TYPE_CHECKING:
    from neurond.device.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the device as a whole."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """How a model's KV cache is measured.

    A page holds K and V of `page_tokens` tokens in every layer; the pool has
    `max_pages` of them, numbered from 0. `state_bytes` is the recurrent state of one
    sequence, 0 where there is none. `shares` = pages may serve several sequences;
    without it the backend keeps a cache of its own per sequence and pages are only
    counted.
    """

    page_tokens: int = 64
    page_bytes: int = 0
    max_pages: int = 1 << 20
    state_bytes: int = 0
    shares: bool = False


@dataclass(slots=True)
class Resident:
    """A loaded model. `body` is the backend's own; `slot` is its row on the page.

    `prefill_tokens_s` was measured at the load, 0.0 = not. `context` is the window that
    is served and `limited_by` says why it is no longer (`window`); room for one such
    sequence, `promised_bytes` of KV, is kept whatever else is loaded. `pauses`: it can
    stop in the middle of a chunk.
    """

    name: str
    context: int
    vocab_size: int
    eos_ids: frozenset[int]
    resident_bytes: int
    info: dict[str, Any]
    body: Any = field(repr=False, default=None)
    slot: int = -1
    last_used_s: float = 0.0
    cache: CacheSpec = field(default_factory=CacheSpec)
    prefill_tokens_s: float = 0.0
    limited_by: str = "model"
    promised_bytes: int = 0
    pauses: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """Compute the next `num_ids` pending ids of a sequence.

    `pause_s` > 0: until the step has taken about so long; what is not done then goes on
    when the same work is given again. At most one work of a forward is such a one, and
    it is the last.
    """

    sequence: Sequence
    num_ids: int
    pause_s: float = 0.0

    @property
    def draws(self) -> bool:
        """Whether a token comes out: only behind the last pending id."""
        return self.num_ids == self.sequence.num_pending


@dataclass(frozen=True, slots=True)
class Row:
    """What a forward gave for one work.

    `token` is None where none was due (more prefill to come, a vector, only scores).
    `logprob` and `top` are the token's, where asked. `prompt` has (logprob, top) for
    each id of the work that is a prompt token but the first, where asked. `vector` is a
    finished embedding. `paused`: nothing yet, the same work has to be given again.
    """

    token: int | None = None
    logprob: float | None = None
    top: TopScores = ()
    prompt: tuple[tuple[float, TopScores], ...] = ()
    vector: bytes | None = None
    paused: bool = False


Outcome = Row | ServiceError
"""An error is why this row alone failed."""

LoadSteps = Generator[LoadProgress, None, Resident]
"""A load in slices of at most about 50 ms, so that running streams go on."""

GoldenSteps = Generator[LoadProgress, None, str]
"""The same for the last part of a load."""


class Backend(Protocol):
    """Pages are handed out by the engine; `sequence.pages[i]` holds its tokens
    [i * page_tokens, (i + 1) * page_tokens). One forward is for one model."""

    name: str
    max_rows: int

    def open(self) -> Memory:
        """Make the device usable. May block; the caller has armed a deadline."""

    def memory(self) -> Memory: ...

    def load(self, spec: Load) -> LoadSteps: ...

    def golden(self, model: Resident) -> GoldenSteps:
        """Compute something known, and what this model answers to a fixed prompt.

        Returns its digest, the same after every load where the device computes rightly.
        Leaves nothing in the model.
        """

    def unload(self, model: Resident) -> None: ...

    def prepare(self, sequence: Sequence) -> None:
        """Begin to build what it needs (its grammar); once, before it is accepted.

        A resumed one has emitted ids among its `ids`. Never blocks, raises nothing.
        """

    def is_ready(self, sequence: Sequence) -> bool:
        """Whether what it needs is there; from then on it is, to the sequence's end.

        Asked between steps until it is true. Never blocks. Raises ServiceError where
        it can't be had: the request fails.
        """

    def forward(self, works: Listing[Work]) -> list[Outcome]:
        """One outcome per work, in order: chunks of prefill and decode rows mixed.

        A Row that isn't paused says that what the work computed is finite, also where
        no token was due: it is shared from then on. Raises when the
        forward as a whole failed; it is then tried again, all rows or each alone, from
        the same `num_computed`, so states must not have moved.
        """

    def release(self, sequence: Sequence) -> None:
        """Drop what the backend has computed for the sequence, at its end or when
        preempted; its pages are the engine's. What was prepared for it stays."""

    def clear_pages(self, model: Resident, pages: Listing[int]) -> None:
        """Zero them before they are used again: NaN would leak through a mask."""

    def copy_page(
        self, model: Resident, source: int, target: int, num_tokens: int
    ) -> None:
        """Copy the first `num_tokens` of a page, so that a sequence may write on."""

    def save_state(self, sequence: Sequence) -> Any:
        """A copy of its recurrent state, valid for its `num_computed`."""

    def load_state(self, sequence: Sequence, state: Any) -> None:
        """Begin from a saved state; it may be used again by others."""

    def probe(self, *, idle: bool = False) -> None:
        """Compute something known. Raises when the device can't be trusted.

        Unless it is `idle`, a forward has failed, and what it held is freed.
        """
