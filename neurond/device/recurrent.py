"""Recurrent states of sequences: what linear-attention layers keep instead of KV.

Device process. A sequence has a slot; per layer, all slots are one tensor. Before a
forward the rows' states are taken out, behind it the new ones are put back: a forward
that fails leaves every state as it was. A state has no length: it is right for one
number of computed tokens and can't be rolled back.

Invariant: a slot belongs to one sequence from `take` to `give`.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing
from typing import Any

import torch
from transformers.cache_utils import LinearAttentionLayer

from neurond.device.layout import StateShape

State = list[torch.Tensor]
"""A saved state: every tensor of one sequence, [1, …], in a fixed order."""

_FIRST_SLOTS = 8


class StateLayer(LinearAttentionLayer):  # type: ignore[misc]  # untyped
    """What the model sees of one layer during a forward."""

    def __init__(self, shape: StateShape) -> None:
        super().__init__(number_of_states=max(1, len(shape.conv), len(shape.recurrent)))
        for index, conv in shape.conv.items():
            self.is_conv_states_initialized[index] = True
            self.conv_kernel_size[index] = conv.shape[-1]
            self.dtype, self.device = conv.dtype, conv.device
        for index in shape.recurrent:
            self.is_recurrent_states_initialized[index] = True

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, state_idx: int = 0, **_: Any
    ) -> torch.Tensor:
        """Kept aside; `States.commit` stores it."""
        self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states


class _Store:
    """One tensor of one layer for all slots; `shown[index]` is what the layer has."""

    def __init__(self, shown: dict[int, Any], index: int, sample: torch.Tensor) -> None:
        self._shown = shown
        self._index = index
        self.all = sample.new_zeros((0, *sample.shape[1:]))

    def grow(self, num_slots: int) -> None:
        grown = self.all.new_zeros((num_slots, *self.all.shape[1:]))
        grown[: self.all.shape[0]] = self.all
        self.all = grown

    def show(self, rows: torch.Tensor) -> None:
        """A copy of them: some kernels write into what they are given."""
        self._shown[self._index] = self.all.index_select(0, rows)

    def keep(self, rows: torch.Tensor) -> None:
        made = self._shown.pop(self._index)
        self.all.index_copy_(0, rows, made.to(self.all.dtype))


class States:
    """The slots of one model. `layers`: by index, those that have a state."""

    def __init__(
        self, shapes: Listing[StateShape | None], device: torch.device
    ) -> None:
        self._device = device
        self.layers = {i: StateLayer(shape) for i, shape in enumerate(shapes) if shape}
        self._stores = [
            _Store(shown, index, sample)
            for at, layer in self.layers.items()
            for shown, samples in _tensors(layer, shapes[at])
            for index, sample in samples.items()
        ]
        self._num_slots = 0
        self._free: list[int] = []
        self._grow(_FIRST_SLOTS)

    def take(self) -> int:
        """A slot; what it holds is undefined until a forward from the beginning."""
        if not self._free:
            self._grow(2 * self._num_slots)
        return self._free.pop()

    def give(self, slot: int) -> None:
        self._free.append(slot)

    def begin(self, slots: Listing[int], *, started: bool) -> None:
        """Show the layers these rows; `started`: they have computed something."""
        rows = torch.tensor(slots, device=self._device)
        for store in self._stores:
            store.show(rows)
        for layer in self.layers.values():
            for index in layer.has_previous_state:
                layer.has_previous_state[index] = started

    def commit(self, slots: Listing[int]) -> None:
        """Keep what the forward made of them."""
        rows = torch.tensor(slots, device=self._device)
        for store in self._stores:
            store.keep(rows)

    def clear(self, slot: int) -> None:
        """As before the first token: what has begun from zeros goes on in steps."""
        for store in self._stores:
            store.all[slot].zero_()

    def save(self, slot: int) -> State:
        return [store.all[slot : slot + 1].clone() for store in self._stores]

    def load(self, slot: int, state: State) -> None:
        for store, saved in zip(self._stores, state, strict=True):
            store.all[slot : slot + 1] = saved

    def _grow(self, num_slots: int) -> None:
        for store in self._stores:
            store.grow(num_slots)
        self._free += range(num_slots - 1, self._num_slots - 1, -1)
        self._num_slots = num_slots


def _tensors(
    layer: StateLayer, shape: StateShape | None
) -> list[tuple[dict[int, Any], dict[int, torch.Tensor]]]:
    """Where a layer shows its tensors, with samples of them."""
    if shape is None:
        return []
    return [
        (layer.conv_states, shape.conv),
        (layer.recurrent_states, shape.recurrent),
    ]
