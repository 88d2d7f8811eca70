"""The sequences of a device: who waits, who runs, by which id they are called.

Device process, torch-free.

    add ─▶ waiting ─ seat ─▶ running ─ remove ─▶ gone
              ▲                 │
              └──── unseat ─────┘

Invariant: a sequence that is known by its id stands in exactly one of the two lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Listing

from neurond.device.backend import Resident
from neurond.device.sequence import Sequence


class Roster:
    """`waiting` in order of arrival; in `running` the model computed longest ago comes
    first, of a model the group on trial, of a group the sequence.

    Both are written here only.
    """

    def __init__(self) -> None:
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._by_id: dict[tuple[int, int], Sequence] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Sequence]:
        return iter([*self.running, *self.waiting])

    def find(self, worker: int, request: int) -> Sequence | None:
        return self._by_id.get((worker, request))

    def add(self, sequence: Sequence) -> None:
        self._by_id[sequence.worker, sequence.id] = sequence
        self.waiting.append(sequence)

    def seat(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        self.running.append(sequence)

    def unseat(self, sequence: Sequence) -> None:
        """Back to the head of the queue."""
        self.running.remove(sequence)
        self.waiting.insert(0, sequence)

    def remove(self, sequence: Sequence) -> None:
        del self._by_id[sequence.worker, sequence.id]
        runs = sequence in self.running
        (self.running if runs else self.waiting).remove(sequence)

    def rotate(self, sequences: Listing[Sequence]) -> None:
        """These, all of one model and group, were computed just now: other models come
        first, then other groups, then those of theirs that had to wait."""
        model, group = sequences[0].model, sequences[0].trial_group
        others = [s for s in self.running if s.model is not model]
        mine = [s for s in self.of(model) if s not in sequences]
        apart = [s for s in mine if s.trial_group != group]
        waited = [s for s in mine if s.trial_group == group]
        self.running = [*others, *apart, *waited, *sequences]

    def of(self, model: Resident) -> list[Sequence]:
        """Those of a model that run."""
        return [sequence for sequence in self.running if sequence.model is model]

    def next_model(self) -> Resident | None:
        """Whose turn it is."""
        return self.running[0].model if self.running else None
