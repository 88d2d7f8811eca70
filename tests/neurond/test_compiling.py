"""Compilers of grammars are processes that come, stay and are ended."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from ipc.errors import CapacityError
from neurond import grammar
from neurond.compiling import Compilers

GOOD = grammar.write("regex", "a|b")
BAD = grammar.write("regex", "(")


@pytest.fixture
def compilers() -> Iterator[Compilers]:
    made = Compilers(most=1)
    yield made
    made.close()


def pids() -> set[int]:
    children = psutil.Process().children()
    return {c.pid for c in children if "grammar" in " ".join(c.cmdline())}


def test_one_process_serves_one_grammar_after_the_other(compilers: Compilers) -> None:
    before = pids()
    assert compilers.verdict(GOOD, 2.0) == ""
    started = pids() - before
    assert compilers.verdict(BAD, 2.0) != ""
    assert compilers.verdict(GOOD, 2.0) == ""
    assert len(started) == 1
    assert pids() - before == started


def test_a_process_that_died_in_between_is_replaced(compilers: Compilers) -> None:
    before = pids()
    compilers.verdict(GOOD, 2.0)
    (first,) = pids() - before
    psutil.Process(first).kill()
    psutil.Process(first).wait()
    assert compilers.verdict(GOOD, 2.0) == ""
    assert first not in pids()


def test_who_takes_too_long_is_ended_and_the_next_is_served(
    compilers: Compilers,
) -> None:
    before = pids()
    compilers.verdict(GOOD, 2.0)
    (first,) = pids() - before
    psutil.Process(first).suspend()  # as long as a grammar may take, and longer
    assert "longer than 0.2 s" in compilers.verdict(GOOD, 0.2)
    assert first not in pids()
    assert compilers.verdict(GOOD, 2.0) == ""


def test_a_schema_that_eats_all_memory_eats_a_process_of_its_own(
    compilers: Compilers,
) -> None:
    """An automaton with as many states as the number is large."""
    schema = {"type": "integer", "multipleOf": 98765431}
    text = grammar.write("json_schema", schema)
    before = psutil.Process().memory_info().rss
    assert "to compile" in compilers.verdict(text, 2.0)
    assert psutil.Process().memory_info().rss - before < 64 << 20
    assert compilers.verdict(GOOD, 2.0) == ""


def test_who_dies_of_its_grammar_is_told_and_the_next_is_served(
    compilers: Compilers,
) -> None:
    before = pids()
    compilers.verdict(GOOD, 2.0)
    (first,) = pids() - before
    psutil.Process(first).suspend()  # it dies with the grammar in its hands
    compilers._idle[0]._process.stdin.write(b"\xff\xff\xff\xff")  # type: ignore[union-attr]
    psutil.Process(first).resume()
    assert "compile" in compilers.verdict(GOOD, 2.0)
    assert compilers.verdict(GOOD, 2.0) == ""


def test_when_all_places_are_taken_others_are_told_to_come_back() -> None:
    with pytest.raises(CapacityError, match="other grammars"):
        Compilers(most=0).verdict(GOOD, 0.01)


def test_a_closed_one_leaves_no_process() -> None:
    before = pids()
    made = Compilers(most=1)
    made.verdict(GOOD, 2.0)
    assert pids() != before
    made.close()
    assert pids() == before
