"""What an operator wants, over restarts and broken files."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from ipc.journal import Journal
from neurond.desired import Desired

SPEC = {"source": "fake", "context": 0}


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def journal(said: io.StringIO) -> Journal:
    return Journal("neurond", stream=said, mode="text")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "desired.json"


def test_what_was_wanted_survives_a_restart(path: Path, journal: Journal) -> None:
    first = Desired(path, journal)
    first.want("tiny", SPEC)
    first.want("other", {})
    first.release("other")

    again = Desired(path, journal)
    assert again.loaded == {"tiny": SPEC}
    assert again.unloaded == {"other"}


def test_the_last_order_counts(path: Path, journal: Journal) -> None:
    desired = Desired(path, journal)
    desired.release("tiny")
    desired.want("tiny", {})
    desired.want("tiny", SPEC)
    assert Desired(path, journal).loaded == {"tiny": SPEC}
    assert Desired(path, journal).unloaded == set()


def test_a_start_loads_defaults_and_what_was_loaded_but_nothing_unloaded(
    path: Path, journal: Journal
) -> None:
    desired = Desired(path, journal)
    desired.want("mine", SPEC)
    desired.release("default-b")
    assert desired.wanted(["default-a", "default-b"]) == {"default-a": {}, "mine": SPEC}


def test_an_order_for_a_default_goes_before_it(path: Path, journal: Journal) -> None:
    desired = Desired(path, journal)
    desired.want("tiny", SPEC)
    assert desired.wanted(["tiny"]) == {"tiny": SPEC}


def test_no_file_is_no_news(path: Path, journal: Journal, said: io.StringIO) -> None:
    assert Desired(path, journal).loaded == {}
    assert said.getvalue() == ""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"loaded": {"tiny": {"source"',
        b"[]",
        b"null",
        b'{"loaded": {"tiny": {}}}',
        b'{"loaded": ["tiny"], "unloaded": []}',
        b'{"loaded": {"tiny": 7}, "unloaded": []}',
        b'{"loaded": {"tiny": {}}, "unloaded": 3}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
    ],
    ids=lambda content: content[:20].decode("latin-1"),
)
def test_a_torn_or_foreign_file_is_an_empty_state_and_a_line_in_the_journal(
    content: bytes, path: Path, journal: Journal, said: io.StringIO
) -> None:
    path.write_bytes(content)
    desired = Desired(path, journal)
    assert (desired.loaded, desired.unloaded) == ({}, set())
    assert "desired models can't be read" in said.getvalue()

    desired.want("tiny", SPEC)
    assert Desired(path, journal).loaded == {"tiny": SPEC}


def test_the_file_is_replaced_whole(path: Path, journal: Journal) -> None:
    desired = Desired(path, journal)
    desired.want("tiny", SPEC)
    with path.open() as before:
        desired.want("other", SPEC)
        assert set(json.load(before)["loaded"]) == {"tiny"}
    assert set(json.loads(path.read_text())["loaded"]) == {"tiny", "other"}
    assert os.listdir(path.parent) == [path.name]


def test_a_disk_that_takes_nothing_is_told_and_stops_nobody(
    tmp_path: Path, journal: Journal, said: io.StringIO
) -> None:
    desired = Desired(tmp_path / "gone" / "desired.json", journal)
    desired.want("tiny", SPEC)
    assert desired.loaded == {"tiny": SPEC}
    assert "desired models can't be written" in said.getvalue()
