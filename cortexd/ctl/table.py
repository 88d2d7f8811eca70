"""Tables that fit the width of a terminal. Pure: cells in, lines out.

Used by cortexctl. Optional columns go, the least needed first, until the rest fits with
every shrinkable column at its `least`; then those get back what room is left. Others
keep their whole text, also when that is too wide: a cut number is a wrong number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cortexd.ctl.units import shorten

GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """`least` > 0: may shrink to that width. `optional` > 0: may go, highest first."""

    title: str
    right: bool = False
    least: int = 0
    optional: int = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """Text with the colour it is painted in, if any is."""

    text: str
    tone: str = ""


Row = Sequence["Cell | str"]
Paint = Callable[[str, str], str]


def layout(
    columns: Sequence[Column],
    rows: Sequence[Row],
    *,
    width: int,
    ellipsis: str = "…",
    paint: Paint = lambda text, _tone: text,
) -> list[str]:
    """Title line and one line per row, at most `width` wide where that is possible."""
    cells = [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in rows]
    widths = _fit(columns, cells, width)
    titles = [Cell(column.title, "title") for column in columns]
    return [_line(columns, row, widths, ellipsis, paint) for row in [titles, *cells]]


def _fit(
    columns: Sequence[Column], rows: list[list[Cell]], width: int
) -> dict[int, int]:
    """Width by column index; a column that had to go has no entry."""
    widths = {
        index: max([len(column.title)] + [len(row[index].text) for row in rows])
        for index, column in enumerate(columns)
    }
    while _total(_least(columns, widths)) > width:
        optional = [index for index in widths if columns[index].optional]
        if not optional:
            break
        del widths[max(optional, key=lambda index: columns[index].optional)]
    while _total(widths) > width:
        shrinkable = [i for i, w in widths.items() if 0 < columns[i].least < w]
        if not shrinkable:
            break
        widths[max(shrinkable, key=lambda i: widths[i])] -= 1
    return widths


def _least(columns: Sequence[Column], widths: dict[int, int]) -> dict[int, int]:
    return {i: min(w, columns[i].least or w) for i, w in widths.items()}


def _total(widths: dict[int, int]) -> int:
    return sum(widths.values()) + len(GAP) * (len(widths) - 1)


def _line(
    columns: Sequence[Column],
    row: list[Cell],
    widths: dict[int, int],
    ellipsis: str,
    paint: Paint,
) -> str:
    parts = []
    last = max(widths)
    for index, width in widths.items():
        cell = row[index]
        text = shorten(cell.text, width, ellipsis)
        pad = " " * (width - len(text))
        painted = paint(text, cell.tone) if text else ""
        if columns[index].right:
            parts.append(pad + painted)
        else:
            parts.append(painted + ("" if index == last else pad))
    return GAP.join(parts).rstrip()
