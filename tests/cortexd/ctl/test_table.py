"""Tables fit their width, and never by cutting a number."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cortexd.ctl.table import Cell, Column, layout

COLUMNS = (
    Column("NAME", least=8),
    Column("STATE"),
    Column("SIZE", right=True),
    Column("EXTRA", optional=2),
    Column("MORE", optional=1),
)


def test_columns_are_as_wide_as_what_stands_in_them() -> None:
    rows = [("a", "ready", "1", "x", "y"), ("long-name", "up", "1000", "", "")]

    assert layout(COLUMNS, rows, width=80) == [
        "NAME       STATE  SIZE  EXTRA  MORE",
        "a          ready     1  x      y",
        "long-name  up     1000",
    ]


def test_a_long_name_loses_its_middle_first() -> None:
    rows = [("a-very-long-model-name", "ready", "1", "x", "y")]

    lines = layout(COLUMNS, rows, width=35)

    assert lines == [
        "NAME       STATE  SIZE  EXTRA  MORE",
        "a-ve…name  ready     1  x      y",
    ]


def test_then_the_least_needed_column_goes() -> None:
    rows = [("a-very-long-model-name", "ready", "1", "x", "y")]

    assert layout(COLUMNS, rows, width=28) == [
        "NAME       STATE  SIZE  MORE",
        "a-ve…name  ready     1  y",
    ]


def test_what_is_needed_stays_whole_even_when_it_is_too_wide() -> None:
    rows = [("name", "ready", "123456789", "x", "y")]

    assert layout(COLUMNS, rows, width=5) == [
        "NAME  STATE       SIZE",
        "name  ready  123456789",
    ]


def test_paint_does_not_count_as_width() -> None:
    rows = [(Cell("a", "good"), "up", "1", "", "")]

    lines = layout(COLUMNS, rows, width=80, paint=lambda text, tone: f"<{tone}>{text}")

    assert lines[1] == "<good>a     <>up        <>1"


@given(
    st.lists(
        st.tuples(*[st.text(alphabet="abcdef-0123456789", max_size=40)] * 5),
        min_size=1,
        max_size=6,
    ),
    st.integers(min_value=20, max_value=120),
)
def test_a_table_fits_or_has_nothing_left_to_give(
    rows: list[tuple[str, ...]], width: int
) -> None:
    lines = layout(COLUMNS, rows, width=width)

    fits = max(map(len, lines)) <= width
    gave_all = "EXTRA" not in lines[0] and "MORE" not in lines[0]
    assert fits or gave_all
    assert len(lines) == len(rows) + 1
