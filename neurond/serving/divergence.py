"""Where a prompt stops being the continuation of an earlier one (S75).

Pure; front end. A turn of a conversation renders to the prompt of the turn before it
and something behind. When a client changes what it sent before, all that follows has
to be computed again, and nobody sees why. So the last prompts are kept, as ids and one
mark per message, and a new one is compared with those of its own conversation.

    before  [system][user 1][assistant 1]│[user 2]…
    now     [system'][user 1][assistant 1]│[user 2][assistant 2][user 3]…
             └ diverges here: 12 of 4,803 tokens are shared

Invariants: bounded in prompts and in tokens, and a new one takes about a millisecond,
however many messages it has; prompts of one model and principal are never compared with
those of another; a change in the newest message is no divergence.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec

MAX_PROMPTS = 256
MAX_TOKENS = 2 << 20
MAX_COMPARED = 16
LEAST_TOKENS = 256
"""A shorter prompt is computed sooner than read about."""
LEAST_LOST = 64
"""Templates rewrite the end of the last turn; a few tokens are no news."""
EARLY_MESSAGES = 64
"""Where nothing among so many is the same, it is another conversation."""
_LIKE_CHARS = 256
_LIKE_SHARE = 0.1

Key = tuple[str, str]
"""Model and principal."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One message, small: enough to tell it from another."""

    role: str
    digest: int
    num_chars: int

    def is_like(self, other: Mark) -> bool:
        """The same but for a detail, by its size."""
        differ = abs(self.num_chars - other.num_chars)
        most = max(_LIKE_CHARS, _LIKE_SHARE * max(self.num_chars, other.num_chars))
        return self.role == other.role and differ <= most


@dataclass(frozen=True, slots=True)
class Prompt:
    """`ids` as 32-bit integers; `tools` stands for the functions that were offered.

    `conversation` is what all turns of one have in common: the first thing its user
    said. `early` are the first messages but the system's, by their place.
    """

    ids: bytes
    marks: tuple[Mark, ...]
    tools: int
    conversation: Mark | None = field(init=False)
    early: frozenset[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        """Once, here: a new prompt is compared with hundreds."""
        said = next((mark for mark in self.marks if mark.role == "user"), None)
        object.__setattr__(self, "conversation", said)
        object.__setattr__(self, "early", _early(self.marks))

    @property
    def num_tokens(self) -> int:
        return len(self.ids) // 4


@dataclass(frozen=True, slots=True)
class Divergence:
    """`shared` tokens from the first on are common; token `shared` is the first that
    is not, of the prompt's `total`. `message` is the first message that changed, None
    where none did: then `role` is "tools" or "template". `lost` is what the earlier
    prompt had behind it."""

    shared: int
    total: int
    lost: int
    message: int | None
    role: str
    conversation: int


def prompt_of(
    ids: Sequence[int], messages: Iterable[Any], tools: Sequence[Any] = ()
) -> Prompt:
    """The ids and marks of a rendered prompt; a millisecond per megabyte."""
    return Prompt(
        array("i", ids).tobytes(),
        tuple([_mark(message) for message in messages]),
        hash(msgspec.json.encode(tools)) if tools else 0,
    )


def divergence(before: Prompt, now: Prompt) -> Divergence | None:
    """None: another conversation, or nothing that had been computed is lost."""
    if not _continues(before, now):
        return None
    shared = num_shared(before.ids, now.ids)
    lost = before.num_tokens - shared
    index = _first_changed(before.marks, now.marks)
    if lost < LEAST_LOST or (index is not None and index >= len(before.marks) - 1):
        return None
    first = now.conversation
    return Divergence(
        shared=shared,
        total=now.num_tokens,
        lost=lost,
        message=index,
        role=_role(before, now, index),
        conversation=first.digest if first else 0,
    )


def num_shared(left: bytes, right: bytes) -> int:
    """Ids that two prompts have in common from their beginning, by halving."""
    low, high = 0, min(len(left), len(right)) // 4
    while low < high:
        middle = (low + high + 1) // 2
        if left[4 * low : 4 * middle] == right[4 * low : 4 * middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Recent:
    """The last prompts of one worker."""

    def __init__(self) -> None:
        self._prompts: OrderedDict[int, tuple[Key, Prompt]] = OrderedDict()
        self._next = 0
        self._num_tokens = 0

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def add(self, key: Key, prompt: Prompt) -> Divergence | None:
        """Keep it. Returns where it left the conversation that it belongs to.

        Of several earlier prompts the one with most in common counts: where one is
        continued, nothing is lost. The prompt that is continued is kept no longer.
        """
        if not LEAST_TOKENS <= prompt.num_tokens <= MAX_TOKENS:
            return None
        found = None
        number = self._nearest(key, prompt)
        if number is not None:
            before = self._prompts[number][1]
            found = divergence(before, prompt)
            if before.num_tokens - num_shared(before.ids, prompt.ids) < LEAST_LOST:
                self._drop(number)
        self._keep(key, prompt)
        return found

    def _nearest(self, key: Key, prompt: Prompt) -> int | None:
        return max(
            self._of(key, prompt),
            key=lambda number: num_shared(self._prompts[number][1].ids, prompt.ids),
            default=None,
        )

    def _of(self, key: Key, prompt: Prompt) -> list[int]:
        """The newest few of its conversation."""
        found = (
            number
            for number, (other, before) in reversed(self._prompts.items())
            if other == key and _continues(before, prompt)
        )
        return list(islice(found, MAX_COMPARED))

    def _keep(self, key: Key, prompt: Prompt) -> None:
        self._prompts[self._next] = key, prompt
        self._next += 1
        self._num_tokens += prompt.num_tokens
        while len(self._prompts) > MAX_PROMPTS or self._num_tokens > MAX_TOKENS:
            self._drop(next(iter(self._prompts)))

    def _drop(self, number: int) -> None:
        self._num_tokens -= self._prompts.pop(number)[1].num_tokens


def _mark(message: Any) -> Mark:
    encoded = msgspec.json.encode(message)
    return Mark(str(message["role"]), hash(encoded), len(encoded))


def _continues(before: Prompt, now: Prompt) -> bool:
    """Whether both are turns of one conversation, as far as can be told.

    The user began both alike, or some early message is the same; and an agent's request
    of another kind (a title, a summary) has another system prompt, not nearly this one.
    """
    if not before.marks or not now.marks or not before.marks[0].is_like(now.marks[0]):
        return False
    if before.conversation is not None and before.conversation == now.conversation:
        return True
    return not before.early.isdisjoint(now.early)


def _early(marks: Sequence[Mark]) -> frozenset[tuple[int, int]]:
    first = enumerate(marks[:EARLY_MESSAGES])
    return frozenset([(i, mark.digest) for i, mark in first if mark.role != "system"])


def _first_changed(before: Sequence[Mark], now: Sequence[Mark]) -> int | None:
    """A message that was dropped from the end counts as changed."""
    for index, mark in enumerate(before):
        if index >= len(now) or mark.digest != now[index].digest:
            return index
    return None


def _role(before: Prompt, now: Prompt, index: int | None) -> str:
    if before.tools != now.tools:
        return "tools"
    if index is None:
        return "template"
    return now.marks[index].role if index < len(now.marks) else before.marks[index].role
