"""Ring messages: what front end and device say to each other about requests.

Used by front-end workers, the gateway's local node and device processes. `messages`
gathers these with the link's, encodes and decodes them; the rules of positions there
hold here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn from the logits; all fields resolved, none absent.

    `logprobs` and `prompt_logprobs`: -1 none, 0 the token's own, k > 0 also the k most
    likely ones, of each emitted token and of each prompt token but the first.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int = -1
    typical_p: float = 1.0
    prompt_logprobs: int = -1


@dataclass(frozen=True, slots=True)
class Submit:
    """Run one sequence. `ids[num_prompt:]` were emitted before (resume, D6).

    `max_tokens` counts emitted tokens in all, those of earlier attempts included; 0 =
    none is wanted, only scores of the prompt. `deadline_s` is seconds from arrival; 0 =
    none. `slabs` name shared slabs with pixels. `grammar` is empty or a JSON object
    with exactly one key: json_schema, regex or lark. `embed`: answer with a Vector of
    the prompt instead of tokens.

    The id stays the same over attempts; `attempt` counts them from 0. Who may have
    killed a device runs in steps of its `trial_group` alone (0 = none) until
    `trial_until` tokens are emitted.
    """

    kind: ClassVar[int] = 1
    id: int
    attempt: int
    model: str
    ids: tuple[int, ...]
    num_prompt: int
    choice: int
    seed: int
    sampling: Sampling
    max_tokens: int
    stop_ids: tuple[int, ...]
    grammar: str
    principal: str
    priority: int
    deadline_s: float
    cache_salt: str
    slabs: tuple[int, ...] = ()
    embed: bool = False
    trial_group: int = 0
    trial_until: int = 0


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop working for this request; no answer follows."""

    kind: ClassVar[int] = 2
    id: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """Admitted; `position` in the queue (0 = running), `cached` prompt tokens."""

    kind: ClassVar[int] = 16
    id: int
    position: int
    cached: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Prefill: `done` of `total` prompt tokens."""

    kind: ClassVar[int] = 17
    id: int
    done: int
    total: int


TopScores = tuple[tuple[int, float], ...]
"""The most likely tokens at one position with their natural logarithms, best first."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """New ids of one sequence; `start` = number emitted before them.

    `logprobs` and `top` have an entry per id where the request asked for them.
    """

    id: int
    start: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    top: tuple[TopScores, ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """One decode step for one worker: a row per sequence of its own."""

    kind: ClassVar[int] = 18
    rows: tuple[TokenRow, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """`reason`: stop (a stop id or EOS) or length. Counts are tokens."""

    kind: ClassVar[int] = 19
    id: int
    reason: str
    num_prompt: int
    num_emitted: int
    num_cached: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended without an answer; `error` is `ServiceError.to_wire()`."""

    kind: ClassVar[int] = 20
    id: int
    error: list[Any]


@dataclass(frozen=True, slots=True)
class SlabsFree:
    """The device has read these slabs."""

    kind: ClassVar[int] = 21
    slabs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Of prompt tokens `start`, `start + 1`, …, given all before each; see Sampling."""

    kind: ClassVar[int] = 22
    id: int
    start: int
    logprobs: tuple[float, ...]
    top: tuple[TopScores, ...] = ()


@dataclass(frozen=True, slots=True)
class Vector:
    """The embedding of the prompt: little-endian float32; Finished follows."""

    kind: ClassVar[int] = 23
    id: int
    values: bytes


RingDown = Submit | Cancel
RingUp = (
    Accepted | Progress | Tokens | Finished | Failed | SlabsFree | PromptScores | Vector
)
