"""One byte budget per device: pages, recurrent states and the prefix store (S28).

Device process, torch-free, pure. Every model of the device has an account; what is used
is counted from the accounts, never kept beside them, so it can't drift. The prefix
store yields to requests: what it alone holds counts as room.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from neurond.device.backend import CacheSpec, Memory
from neurond.device.pages import Pages
from neurond.device.prefix import PrefixStore
from neurond.device.settings import DeviceSettings

_CPU_SHARE = 0.25
_CUDA_SHARE = 0.9
_CUDA_SPARE_BYTES = 1 << 30
"""For activations and the libraries' workspaces."""


def kv_budget_bytes(
    settings: DeviceSettings, kind: str, memory: Memory, resident_bytes: int
) -> int:
    """Bytes for the KV cache of all models of a device, given the weights' bytes.

    As configured, or else a share of what the weights leave: on a CPU the host has
    other uses for its memory, on CUDA there is none but a forward's activations.
    """
    if settings.kv_bytes:
        return settings.kv_bytes
    left_bytes = memory.total_bytes - resident_bytes
    if kind == "cuda":
        return max(0, int(left_bytes * _CUDA_SHARE) - _CUDA_SPARE_BYTES)
    return max(0, int(left_bytes * _CPU_SHARE))


@dataclass(slots=True)
class Account:
    """What one model holds of the budget. `num_live_states` are running sequences'."""

    spec: CacheSpec
    pages: Pages
    store: PrefixStore
    num_live_states: int = 0
    num_unproven_states: int = 0

    @property
    def used_bytes(self) -> int:
        """By sequences."""
        num_pages = self.pages.num_used - self.pages.num_idle
        num_states = self.num_live_states + self.num_unproven_states
        return num_pages * self.spec.page_bytes + num_states * self.spec.state_bytes

    @property
    def cached_bytes(self) -> int:
        """By the store alone."""
        pages_bytes = self.pages.num_idle * self.spec.page_bytes
        return pages_bytes + self.store.num_states * self.spec.state_bytes


@dataclass(slots=True)
class Budget:
    """`accounts` by model name."""

    limit_bytes: int = 0
    accounts: dict[str, Account] = field(default_factory=dict)

    @property
    def used_bytes(self) -> int:
        return sum(account.used_bytes for account in self._all())

    @property
    def cached_bytes(self) -> int:
        return sum(account.cached_bytes for account in self._all())

    @property
    def free_bytes(self) -> int:
        """Negative when the budget has shrunk below what is held."""
        return self.limit_bytes - self.used_bytes - self.cached_bytes

    def _all(self) -> Collection[Account]:
        return self.accounts.values()
