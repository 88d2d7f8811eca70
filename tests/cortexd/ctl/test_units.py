"""Quantities read well, and what people type is understood or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.ctl import units


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1536, "1.5 KiB"),
        (283 << 20, "283 MiB"),
        (1023 << 20, "1.0 GiB"),
        (5000 << 40, "5000 TiB"),
    ],
)
def test_a_size_has_three_digits_and_a_binary_unit(
    count: float | None, text: str
) -> None:
    assert units.size(count) == text


def test_used_and_total_share_the_unit_of_the_total() -> None:
    assert units.used_of(512 << 20, 12 << 30) == "0.5/12.0 GiB"
    assert units.used_of(64 << 30, 768 << 30) == "64/768 GiB"


def test_a_device_without_known_memory_shows_a_dash() -> None:
    assert units.used_of(0, 0) == "-"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (-3, "0s"),
        (0.9, "0s"),
        (45, "45s"),
        (60, "1m"),
        (725, "12m05s"),
        (3600, "1h"),
        (3725, "1h02m"),
        (90000, "1d01h"),
    ],
)
def test_a_span_has_two_steps_at_most(seconds: float | None, text: str) -> None:
    assert units.span(seconds) == text


def test_an_age_without_a_beginning_is_a_dash() -> None:
    assert units.since(None, 100) == "-"
    assert units.since(0, 100) == "-"
    assert units.since(40, 100) == "1m"


def test_a_percentage_never_rounds_up_to_a_hundred() -> None:
    assert units.percent(99.9) == "99%"
    assert units.percent(None) == "-"


@given(st.text(max_size=60), st.integers(min_value=1, max_value=50))
def test_shortened_text_fits_and_short_text_is_untouched(text: str, width: int) -> None:
    short = units.shorten(text, width)

    assert len(short) <= width
    assert short == text or len(text) > width


def test_shortening_keeps_both_ends() -> None:
    assert units.shorten("qwen3-coder-30b-instruct", 12) == "qwen3-…truct"


@pytest.mark.parametrize(
    ("text", "count"),
    [("8192", 8192), ("32k", 32768), ("1M", 1 << 20), (" 2g ", 2**31)],
)
def test_counts_may_carry_a_factor(text: str, count: int) -> None:
    assert units.parse_count(text) == count


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("5m", 300), ("0.5h", 1800), ("2d", 172800)]
)
def test_spans_may_carry_a_unit(text: str, seconds: float) -> None:
    assert units.parse_span(text) == seconds


@pytest.mark.parametrize("text", ["", "k", "-1k", "0.3", "many", "nan", "inf"])
def test_a_count_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        units.parse_count(text)


@pytest.mark.parametrize("text", ["", "m", "-5", "soon", "inf", "nan"])
def test_a_span_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        units.parse_span(text)
