"""docs/scenarios.md says which test proves each scenario; here it is held to that."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "scenarios.md"
# S52-S59 and S77-S79 were never given out.
EXPECTED = {f"S{number:02d}" for number in range(1, 85)} - {
    f"S{number}" for number in (*range(52, 60), *range(77, 80))
}


class Row(NamedTuple):
    id: str
    happens: str
    holds: str
    status: str
    tests: tuple[str, ...]


def _rows(text: str) -> list[Row]:
    rows = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"S\d\d", cells[0]):
            *head, tests = cells
            rows.append(Row(*head, tuple(re.findall(r"`([^`]+)`", tests))))
    return rows


def _problem(row: Row) -> str:
    """Why the row can't be believed; "" when it can."""
    if row.status not in ("planned", "kept"):
        return f"{row.id}: status {row.status!r} is neither planned nor kept"
    if row.status == "kept" and not row.tests:
        return f"{row.id} is kept, by no test"
    missing = [test for test in row.tests if not _exists(test)]
    return f"{row.id}: no such test: {', '.join(missing)}" if missing else ""


def _exists(test: str) -> bool:
    path, _, name = test.partition("::")
    if not (ROOT / path).is_file():
        return False
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return name in {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


ROWS = _rows(TABLE.read_text())


def test_no_scenario_is_lost_and_none_stands_twice() -> None:
    assert sorted(row.id for row in ROWS) == sorted(EXPECTED)


@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
def test_what_a_row_claims_is_true(row: Row) -> None:
    assert _problem(row) == ""


@pytest.mark.parametrize(
    ("status", "tests", "problem"),
    [
        ("kept", "", "S01 is kept, by no test"),
        ("done", "", "S01: status 'done' is neither planned nor kept"),
        ("kept", "`tests/no.py::test_a`", "S01: no such test: tests/no.py::test_a"),
        ("kept", "`tests/test_scenarios.py::test_no`", "S01: no such test: "),
    ],
)
def test_a_false_claim_is_found(status: str, tests: str, problem: str) -> None:
    (row,) = _rows(f"| S01 | something | something else | {status} | {tests} |")

    assert _problem(row).startswith(problem)
