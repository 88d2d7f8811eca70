"""Stop strings over any split of the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurond.serving.stops import StopBuffer

LETTERS = st.text(alphabet="abc", max_size=30)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4)


def run(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    buffer = StopBuffer(stops)
    shown = ""
    for piece in pieces:
        text, hit = buffer.push(piece)
        shown += text
        if hit:
            return shown, True
    return shown + buffer.flush(), False


def cut(text: str, sizes: list[int]) -> list[str]:
    pieces = []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    return [*pieces, text]


@given(LETTERS, STOPS, st.lists(st.integers(0, 5)))
def test_any_split_of_the_text_shows_the_same(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    split = run(tuple(stops), cut(text, sizes))
    assert split == run(tuple(stops), [text]) == run(tuple(stops), list(text))


@given(LETTERS, STOPS, st.lists(st.integers(0, 5)))
def test_no_stop_string_is_ever_shown_and_nothing_else_is_lost(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    shown, hit = run(tuple(stops), cut(text, sizes))
    assert hit == any(stop in text for stop in stops)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    if not hit:
        assert shown == text


def test_only_text_that_may_become_a_stop_string_is_held_back() -> None:
    buffer = StopBuffer(("END",))
    assert buffer.push("say E") == ("say ", False)
    assert buffer.push("N") == ("", False)
    assert buffer.push("O") == ("ENO", False)
    assert buffer.push(" END of") == (" ", True)


@pytest.mark.parametrize(
    ("stops", "text", "shown"),
    [
        (("abc", "b"), "xabc", "xa"),
        (("abc", "bc"), "xabc", "x"),
        (("\n\n",), "a\n\nb", "a"),
        (("aab",), "aaab", "a"),
    ],
)
def test_the_stop_string_that_is_complete_first_wins(
    stops: tuple[str, ...], text: str, shown: str
) -> None:
    assert run(stops, [text]) == (shown, True)


def test_without_stop_strings_everything_passes_at_once() -> None:
    buffer = StopBuffer(())
    assert buffer.push("abc") == ("abc", False)
    assert buffer.flush() == ""
