"""Log probabilities of the older dialect: lists side by side, offsets into the text."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ipc.messages import PromptScores
from neurond.serving.choice import Shown
from neurond.serving.logprobs import LEAST_LOGPROB, Score
from neurond.serving.textlogprobs import (
    TextLogprobs,
    merged,
    prompt_logprobs,
    prompt_tokens,
)


class Letters:
    """Ids are bytes; 256 is a special token."""

    def piece(self, token: int, *, first: bool) -> bytes | None:
        return bytes([token]) if token < 256 else None

    def spelt(self, token: int, *, first: bool) -> bytes:
        return bytes([token]) if token < 256 else b"<s>"


def score(token: bytes, logprob: float = -1.0, *top: tuple[bytes, float]) -> Score:
    return Score(token, logprob, top)


def test_the_lists_stand_side_by_side() -> None:
    scores = [score(b"He", -0.5, (b"He", -0.5), (b"She", -1.5)), score(b" is", -2.0)]
    told = TextLogprobs(1).shown(Shown("He is", scores))
    assert told == {
        "tokens": ["He", " is"],
        "token_logprobs": [-0.5, -2.0],
        "top_logprobs": [{"He": -0.5}, {" is": -2.0}],
        "text_offset": [0, 2],
    }


def test_the_token_itself_is_among_the_most_likely_also_when_it_is_not() -> None:
    drawn = score(b"x", -9.0, (b"a", -0.1), (b"b", -0.2))
    told = TextLogprobs(2).shown(Shown("x", [drawn]))
    assert told["top_logprobs"] == [{"a": -0.1, "b": -0.2, "x": -9.0}]
    told = TextLogprobs(0).shown(Shown("x", [drawn]))
    assert told["top_logprobs"] is None


def test_what_cannot_be_drawn_is_a_number_all_the_same() -> None:
    told = TextLogprobs(1).shown(Shown("x", [score(b"x", float("-inf"))]))
    assert told["token_logprobs"] == [LEAST_LOGPROB]


def test_a_split_character_begins_where_it_is_shown() -> None:
    emoji = "é😀".encode()
    scores = [score(bytes([byte])) for byte in emoji]
    told = TextLogprobs(0).shown(Shown("é😀", scores))
    assert told["text_offset"] == [0, 0, 1, 1, 1, 1]
    assert told["tokens"][:2] == ["\\xc3", "\\xa9"]


def test_a_special_token_has_no_width() -> None:
    scores = [score(b"a"), score(b"<s>"), score(b"b")]
    assert TextLogprobs(0).shown(Shown("ab", scores))["text_offset"] == [0, 1, 1]


def test_a_prompt_is_scored_but_for_its_first_token() -> None:
    scores = [
        PromptScores(0, 1, (-1.0,), (((98, -1.0),),)),
        PromptScores(0, 2, (-2.0,)),
    ]
    tokens = prompt_tokens((97, 98, 99), Letters(), scores)
    told = TextLogprobs(1)
    first = told.prompt("abc", tokens)
    assert first == {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [None, -1.0, -2.0],
        "top_logprobs": [None, {"b": -1.0}, {"c": -2.0}],
        "text_offset": [0, 1, 2],
    }
    whole = merged([first, told.shown(Shown("d", [score(b"d")]))])
    assert whole["tokens"] == ["a", "b", "c", "d"]
    assert whole["text_offset"] == [0, 1, 2, 3]


def test_a_beginning_that_the_text_does_not_show_has_no_width() -> None:
    tokens = prompt_tokens((256, 97, 98), Letters(), [])
    told = TextLogprobs(0).prompt("ab", tokens)
    assert told["tokens"] == ["<s>", "a", "b"]
    assert told["text_offset"] == [0, 0, 1]


def test_prompt_logprobs_are_by_id_with_their_rank() -> None:
    scores = [PromptScores(0, 1, (-3.0,), (((97, -0.1), (98, -3.0)),))]
    told = prompt_logprobs((97, 98, 99), Letters(), scores)
    assert told[0] is None
    assert told[1] == {
        "98": {"logprob": -3.0, "rank": 2, "decoded_token": "b"},
        "97": {"logprob": -0.1, "rank": 1, "decoded_token": "a"},
    }
    assert told[2] is None
    (_, unranked) = prompt_logprobs((97, 99), Letters(), [PromptScores(0, 1, (-5.0,))])
    assert unranked == {"99": {"logprob": -5.0, "rank": None, "decoded_token": "c"}}


@given(st.text(min_size=1, max_size=20), st.lists(st.integers(0, 60), max_size=5))
def test_however_a_text_is_cut_the_offsets_are_the_same(
    text: str, cuts: list[int]
) -> None:
    """Tokens are characters; each frame has some of them."""
    whole = TextLogprobs(0).shown(_shown(text))
    places = sorted({0, len(text), *[cut % (len(text) + 1) for cut in cuts]})
    told = TextLogprobs(0)
    bodies: list[Any] = [
        told.shown(_shown(text[a:b])) for a, b in zip(places, places[1:], strict=False)
    ]
    assert merged(bodies) == whole
    assert whole["text_offset"] == list(range(len(text)))


def _shown(text: str) -> Shown:
    return Shown(text, [score(char.encode()) for char in text])
