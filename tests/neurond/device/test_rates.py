from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurond.device.backend import Work
from neurond.device.pace import Pace
from neurond.device.rates import RateModel, Rates
from tests.neurond.device.test_scheduler import decoding, resident, sequence

Cost = Callable[[int, int], float]


def settled(cost: Cost, *, rows: int, steps: int = 40, most: int = 512) -> list[int]:
    """Chunks chosen one after the other where steps cost this."""
    model = RateModel()
    model.observe(0, most, cost(0, most))
    for _ in range(10):
        model.observe(rows, 0, cost(rows, 0))
    chunks = []
    for _ in range(steps):
        chunks.append(model.chunk(most, model.decode_s(rows), mixed=True))
        model.observe(rows, chunks[-1], cost(rows, chunks[-1]))
    return chunks


def test_nothing_is_known_at_first() -> None:
    model = RateModel()
    assert model.rates == Rates(0.0, 0.0)
    assert model.chunk(512, 0.0, mixed=True) == 64
    assert model.chunk(20, 0.0, mixed=True) == 20


def test_rates_are_those_of_prefill_alone_and_of_decoding() -> None:
    model = RateModel()
    for _ in range(40):
        model.observe(0, 500, 0.5)
        model.observe(4, 0, 0.05)
        model.observe(4, 100, 0.4)
    assert model.rates.prefill_tokens_s == pytest.approx(1000)
    assert model.rates.decode_steps_s == pytest.approx(20)


def test_a_step_with_more_rows_is_known_by_the_nearest_that_was_measured() -> None:
    model = RateModel()
    model.observe(1, 0, 0.02)
    model.observe(16, 0, 0.07)
    assert model.decode_s(2) == 0.02
    assert model.decode_s(12) == 0.07


def test_a_chunk_makes_a_step_two_and_a_half_times_as_long() -> None:
    chunks = settled(lambda rows, n: rows * 0.005 + n * 0.0005, rows=16)
    assert chunks[-1] == 240  # 0.08 s and 0.12 s


def test_a_fixed_cost_of_mixing_settles_into_the_price_of_a_token() -> None:
    def cost(rows: int, tokens: int) -> float:
        return 0.060 + (0.030 if tokens else 0) + tokens * 0.0005

    chunk = settled(cost, rows=16)[-1]
    assert 1.9 < cost(16, chunk) / cost(16, 0) <= 2.9
    alone = cost(0, 512) / 512
    assert cost(16, chunk) / chunk <= 2 * alone


def test_a_chunk_is_never_too_small_to_get_on() -> None:
    assert settled(lambda rows, n: 0.001 + n * 0.01, rows=1)[-1] == 32
    assert settled(lambda rows, n: 1.0 + n * 0.0001, rows=1)[-1] == 512


@given(
    base_s=st.floats(1e-4, 1.0),
    token_s=st.floats(1e-6, 0.1),
    fixed_s=st.floats(0, 0.5),
    most=st.integers(1, 4096),
)
def test_chunks_stay_in_their_bounds(
    base_s: float, token_s: float, fixed_s: float, most: int
) -> None:
    def cost(rows: int, tokens: int) -> float:
        return base_s + (fixed_s + tokens * token_s if tokens else 0)

    chunks = settled(cost, rows=3, steps=12, most=most)
    assert all(min(most, 32) <= chunk <= most for chunk in chunks)


# ---- a device's models --------------------------------------------------------------


def test_streams_of_another_model_bound_a_chunk_too() -> None:
    mine, other = resident("m"), resident("other")
    pace = Pace(512)
    prompt, stream = sequence(1, num_ids=90), decoding(2, model=other)
    prompt.model, stream.model = mine, other
    assert pace.chunk(mine, [prompt]) == 512
    assert pace.chunk(mine, [prompt, stream]) == 64
    pace.observe([Work(stream, 1)], 0.1)
    pace.observe([Work(prompt, 90)], 0.09)
    assert pace.chunk(mine, [prompt, stream]) == 144  # 0.15 s of 0.001 s each
    pace.observe([Work(prompt, 90)], 0.0)
    assert pace.rates(mine).prefill_tokens_s == pytest.approx(1000)
    pace.forget(mine)
    assert pace.rates(mine) == Rates()
