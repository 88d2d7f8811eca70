"""S07: text comes in whole, final characters, however the ids are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from neurond.serving.detokenize import Detokenizer
from neurond.serving.tokenizer import Segment, Tokenizer
from tests.neurond.serving import folders

BYTE_LEVEL = folders.byte_level()
BYTE_FALLBACK = folders.byte_fallback()
BACKENDS = {"byte level": BYTE_LEVEL, "byte fallback": BYTE_FALLBACK}


def serving(backend: Backend) -> Tokenizer:
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


SERVING = {name: serving(backend) for name, backend in BACKENDS.items()}
FAMILIES = pytest.mark.parametrize("family", BACKENDS)
IDS = st.lists(st.integers(0, BYTE_FALLBACK.get_vocab_size() - 1), max_size=40)
TEXTS = st.text(
    alphabet=st.characters(codec="utf-8") | st.sampled_from("a😀日é👩‍👧"), max_size=20
)


def run(family: str, pieces: list[list[int]]) -> list[str]:
    detokenizer = Detokenizer(SERVING[family])
    return [detokenizer.push(piece) for piece in pieces]


def cut(ids: list[int], sizes: list[int]) -> list[list[int]]:
    pieces = []
    for size in sizes:
        pieces.append(ids[:size])
        ids = ids[size:]
    return [*pieces, ids]


@FAMILIES
@given(ids=IDS, sizes=st.lists(st.integers(0, 4)))
def test_s07_any_split_of_the_ids_yields_the_same_text(
    family: str, ids: list[int], sizes: list[int]
) -> None:
    assert "".join(run(family, cut(ids, sizes))) == "".join(run(family, [ids]))


@FAMILIES
@given(ids=IDS, more=IDS)
def test_s07_what_was_shown_never_changes_when_more_ids_follow(
    family: str, ids: list[int], more: list[int]
) -> None:
    shown = run(family, [ids])[0]
    assert run(family, [ids + more])[0].startswith(shown)


@FAMILIES
@given(text=TEXTS)
def test_s07_encoded_text_comes_back_whole_and_without_replacement_characters(
    family: str, text: str
) -> None:
    ids = SERVING[family].encode([Segment(text, literal=True)])
    pushes = run(family, [[token] for token in ids])
    expected = BACKENDS[family].decode(ids, skip_special_tokens=True)
    assert "".join(pushes) == expected
    if family == "byte level":
        assert expected == text
    assert not any("\ufffd" in push for push in pushes) or "\ufffd" in text


@given(ids=IDS)
def test_for_any_ids_the_text_is_the_librarys_less_a_cut_off_character(
    ids: list[int],
) -> None:
    ours = run("byte level", [ids])[0]
    whole = BYTE_LEVEL.decode(ids, skip_special_tokens=True)
    assert whole in (ours, ours + "\ufffd")


def test_s07_an_emoji_in_four_tokens_appears_with_the_fourth() -> None:
    ids = [3 + byte for byte in "😀".encode()]
    assert run("byte fallback", [[token] for token in ids]) == ["", "", "", "😀"]


def test_a_character_that_the_end_cuts_off_is_not_shown() -> None:
    ids = [3 + byte for byte in "a😀".encode()[:-1]]
    assert run("byte fallback", [ids]) == ["a"]


def test_bytes_that_nothing_can_mend_are_shown_as_replacement_characters() -> None:
    ids = [3 + byte for byte in b"\xff\xe4a"]
    assert run("byte fallback", [[token] for token in ids]) == ["\ufffd", "", "\ufffda"]


def test_special_tokens_are_not_shown_and_other_added_tokens_are() -> None:
    vocabulary = BYTE_LEVEL.get_vocab()
    end, think = vocabulary["<|im_end|>"], vocabulary["<｜think é｜>"]
    assert run("byte level", [[think, end]]) == ["<｜think é｜>"]


def test_the_space_of_the_first_word_only_is_dropped() -> None:
    ids = SERVING["byte fallback"].encode([Segment("hi you", literal=False)])
    assert "".join(run("byte fallback", [[token] for token in ids])) == "hi you"


def test_an_id_without_a_token_is_nothing() -> None:
    assert run("byte level", [[100_000]]) == [""]
