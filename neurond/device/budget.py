"""One byte budget per device: pages, recurrent states and the prefix store (S28).

Device process, torch-free, pure. Every model of the device has an account; what is used
is counted from the accounts, never kept beside them, so it can't drift. The prefix
store yields to requests: what it alone holds counts as room.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

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


class Lack(Enum):
    """What there is too little of."""

    PAGES = "the model's pool has no page left"
    BYTES = "the device's budget has no byte left"


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

    def evict(self) -> bool:
        """Free the page of the store not used for longest. False: there is none."""
        page = self.store.evict(self.pages.is_idle)
        if page is not None:
            self.pages.unkeep(page)
        return page is not None


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

    def make_room(self, account: Account, count: int, size_bytes: int) -> Lack | None:
        """Evict until `count` pages and `size_bytes` besides are free; or nothing."""
        pages = account.pages
        need_bytes = count * account.spec.page_bytes + size_bytes
        if pages.num_free + pages.num_idle < count:
            return Lack.PAGES
        if self.free_bytes + self.cached_bytes < need_bytes:
            return Lack.BYTES
        while pages.num_free < count:
            if not account.evict():
                return Lack.PAGES
        while need_bytes and self.free_bytes < need_bytes:
            if not (self._evict_oldest() or self._drop_state()):
                return Lack.BYTES
        return None

    def _evict_oldest(self) -> bool:
        """The leaf not used for longest, whichever model's."""
        candidates = [account for account in self._all() if account.store.oldest >= 0]
        ordered = sorted(candidates, key=lambda account: account.store.oldest)
        return any(account.evict() for account in ordered)

    def _drop_state(self) -> bool:
        """Of a page that is in use: it goes on without."""
        return any(account.store.drop_state() for account in self._all())

    def _all(self) -> Collection[Account]:
        return self.accounts.values()
