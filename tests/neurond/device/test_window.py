"""How long a sequence may be: the least of four bounds, fixed at the load."""

from __future__ import annotations

import pytest

from neurond.device.window import LEAST_BY_RATE, Window, window
from tests.neurond.device.simulated import Simulation

OWN = Window(8192, "model")


@pytest.mark.parametrize(
    ("asked", "memory", "rate", "target_s", "found"),
    [
        (OWN, 9000, 0.0, 120.0, OWN),
        (OWN, 8192, 1000.0, 120.0, OWN),
        (Window(4096, "setting"), 9000, 0.0, 0.0, Window(4096, "setting")),
        (OWN, 5000, 0.0, 120.0, Window(5000, "memory")),
        (OWN, 0, 0.0, 120.0, Window(0, "memory")),
        (OWN, 9000, 20.0, 120.0, Window(2400, "prefill_rate")),
        (OWN, 2000, 20.0, 120.0, Window(2000, "memory")),
        (OWN, 3000, 20.0, 120.0, Window(2400, "prefill_rate")),
        (OWN, 9000, 20.0, 0.0, OWN),
        (OWN, 9000, 0.5, 120.0, Window(LEAST_BY_RATE, "prefill_rate")),
    ],
)
def test_the_least_bound_counts_and_says_its_name(
    asked: Window, memory: int, rate: float, target_s: float, found: Window
) -> None:
    bounds = {"memory_tokens": memory, "prefill_tokens_s": rate, "target_s": target_s}
    assert window(asked, **bounds) == found  # type: ignore[arg-type]


def test_s26_a_model_loaded_later_takes_nothing_of_what_was_promised() -> None:
    sim = Simulation(device_bytes=8000, page_tokens=8, page_bytes=8, memory_bytes=0)
    first = sim.engine.models["m"]
    promised = first.context
    assert (promised, first.limited_by) == (2000, "memory")
    sim.load("other", page_tokens=8, page_bytes=8, memory_bytes=4000)
    assert sim.engine.models["other"].context == 2000
    assert sim.engine.window("m") == promised


def test_the_rate_at_load_is_shown_until_requests_were_measured() -> None:
    sim = Simulation({"first_token_target_s": 10.0}, token_ms=10)
    model = sim.engine.models["m"]
    assert (model.context, model.limited_by) == (1000, "prefill_rate")
    assert sim.engine.rates("m").prefill_tokens_s == 100.0
    sim.answer(1, [1] * 100, max_tokens=2)
    assert sim.engine.rates("m").prefill_tokens_s == pytest.approx(100.0)
