from __future__ import annotations

import pytest

from neurond.device.backend import CacheSpec, Memory
from neurond.device.budget import Account, Budget, kv_budget_bytes
from neurond.device.pages import Pages
from neurond.device.prefix import PrefixStore
from neurond.device.settings import DeviceSettings

GIB = 1 << 30


@pytest.mark.parametrize(
    ("kind", "resident_bytes", "budget_bytes"),
    [
        ("cpu", 4 * GIB, 2 * GIB),
        ("cuda", 2 * GIB, 8 * GIB),
        ("cpu", 13 * GIB, 0),
        ("cuda", 12 * GIB, 0),
    ],
)
def test_the_budget_is_a_share_of_what_the_weights_leave(
    kind: str, resident_bytes: int, budget_bytes: int
) -> None:
    memory = Memory(12 * GIB, 5 * GIB)
    settings = DeviceSettings()
    assert kv_budget_bytes(settings, kind, memory, resident_bytes) == budget_bytes


def test_a_configured_budget_is_taken_as_it_is() -> None:
    settings = DeviceSettings(kv_bytes=77)
    assert kv_budget_bytes(settings, "cpu", Memory(0, 0), 5) == 77


def test_s28_models_and_their_stores_share_one_budget() -> None:
    budget = Budget(limit_bytes=1000)
    for name, page_bytes in (("a", 100), ("b", 10)):
        store = PrefixStore(4, iter(range(9)))
        spec = CacheSpec(page_bytes=page_bytes, state_bytes=1)
        budget.accounts[name] = Account(spec, Pages(8), store)
    first, second = budget.accounts["a"], budget.accounts["b"]
    first.pages.take(3, "x")
    second.pages.take(2, "y")
    second.num_live_states = 2
    first.pages.keep(0)
    first.pages.drop([0])
    assert (budget.used_bytes, budget.cached_bytes) == (200 + 20 + 2, 100)
    assert budget.free_bytes == 678
