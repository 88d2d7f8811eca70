"""Log probabilities come with their text, whatever it is held back for."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob
from transformers import PreTrainedTokenizerFast

from ipc.messages import PromptScores, TokenRow, Tokens
from neurond.serving.choice import Choice
from neurond.serving.logprobs import Score, chat_content, score_of, token_text
from neurond.serving.openai import logprobs_body
from neurond.serving.tokenizer import Tokenizer
from tests.neurond.serving import folders
from tests.neurond.serving.test_generation import Bench, started

END = 256


class Scored(Bench):
    """A bench whose device says a logprob of -N/100 for byte N."""

    def ids(self, ids: list[int]) -> None:
        logprobs = tuple(-i / 100 for i in ids)
        row = TokenRow(1, self.emitted[1], tuple(ids), logprobs)
        self.say(Tokens((row,)))
        self.emitted[1] += len(ids)

    @property
    def choice(self) -> Choice:
        return self.generation.choices[0]


def scored(**options: Any) -> Scored:
    bench = Scored(logprobs=0, **options)
    bench.start()
    bench.accept()
    return bench


def tokens_of(scores: list[Score]) -> list[bytes]:
    return [score.token for score in scores]


def test_a_token_is_reported_with_its_text() -> None:
    bench = scored()
    bench.ids([97, 98])
    shown = bench.choice.take()
    assert shown.text == "ab"
    assert [(s.token, s.logprob) for s in shown.scores] == [
        (b"a", -0.97),
        (b"b", -0.98),
    ]
    assert not bench.choice.take()


def test_s07_the_tokens_of_a_split_character_come_with_the_character() -> None:
    bench = scored()
    parts = list("😀".encode())
    bench.ids([97, *parts[:3]])
    assert tokens_of(bench.choice.take().scores) == [b"a"]
    bench.ids(parts[3:])
    shown = bench.choice.take()
    assert shown.text == "😀"
    assert b"".join(tokens_of(shown.scores)) == "😀".encode()


def test_a_character_that_the_end_cuts_off_is_reported_at_the_end() -> None:
    bench = scored()
    bench.ids(list("é".encode())[:1])
    assert not bench.choice.take()
    bench.finish("length")
    shown = bench.choice.take()
    assert (shown.text, tokens_of(shown.scores)) == ("", [b"\xc3"])


def test_tokens_held_back_for_a_stop_string_come_when_their_text_does() -> None:
    bench = scored(stops=("END",))
    bench.ids(list(b"xE"))
    assert tokens_of(bench.choice.take().scores) == [b"x"]
    bench.ids(list(b"Ny"))
    shown = bench.choice.take()
    assert (shown.text, tokens_of(shown.scores)) == ("ENy", [b"E", b"N", b"y"])


def test_tokens_that_a_stop_string_cuts_off_are_not_reported() -> None:
    bench = scored(stops=("END",))
    bench.ids(list(b"xEND more"))
    shown = bench.choice.take()
    assert (shown.text, tokens_of(shown.scores)) == ("x", [b"x"])
    assert bench.choice.finish == "stop"


def test_a_special_token_is_reported_in_its_place() -> None:
    bench = scored(stops=("END",))
    bench.ids([97, END, 69])
    assert tokens_of(bench.choice.take().scores) == [b"a", b"<end>"]
    bench.finish()
    assert tokens_of(bench.choice.take().scores) == [b"E"]


TEXT = st.text(alphabet="aEND😀é", max_size=20)
SIZES = st.lists(st.integers(1, 5), max_size=20)


@given(TEXT, SIZES, st.sampled_from([(), ("END",), ("é",), ("aE", "ND")]))
def test_any_split_into_rows_reports_the_same_tokens_with_the_same_text(
    text: str, sizes: list[int], stops: tuple[str, ...]
) -> None:
    ids, bench = list(text.encode()), scored(stops=stops)
    read, scores = "", list[Score]()
    for size in [*sizes, len(ids)]:
        if ids[:size] and not bench.choice.ended:
            bench.ids(ids[:size])
        ids = ids[size:]
        shown = bench.choice.take()
        read, scores = read + shown.text, scores + shown.scores
        # never ahead of the text, never behind it but for what is held back
        assert read.encode() == b"".join(tokens_of(scores))
    if not bench.choice.ended:
        bench.finish()
    shown = bench.choice.take()
    read, scores = read + shown.text, scores + shown.scores
    assert read.encode() == b"".join(tokens_of(scores))
    cut = min([text.find(stop) for stop in stops if stop in text], default=len(text))
    assert read == text[:cut]


def test_no_stop_string_is_looked_for_before_min_tokens() -> None:
    bench = started(stops=("END",), min_tokens=8)
    bench.text("xENDy")
    bench.text("END")
    choice = bench.generation.choices[0]
    assert (choice.take().text, choice.finish) == ("xENDyEND", None)
    bench.text(" END")
    assert choice.finish == "stop"


def test_a_prompts_scores_are_kept_for_who_asked() -> None:
    bench = started(prompt_logprobs=0)
    scores = PromptScores(1, 1, (-0.5, -0.25))
    bench.say(scores)
    assert bench.generation.choices[0].prompt_scores == [scores]


def test_scores_that_nobody_reads_count_as_backlog() -> None:
    bench = Scored(logprobs=1)
    bench.start()
    bench.accept()
    for index in range(9000):
        top = (((97, -0.1),),)
        bench.say(Tokens((TokenRow(1, index, (END,), (-0.1,), top),)))
        if bench.generation.error is not None:
            break
    assert bench.generation.error is not None
    assert bench.line.cancelled == [1]


def test_the_chat_shape_is_the_sdks() -> None:
    infinite = Score(b"a", float("-inf"), ((b"\xf0\x9f", -0.5), (b"b", float("nan"))))
    body = json.loads(json.dumps(logprobs_body([infinite]), allow_nan=False))
    entry = ChatCompletionTokenLogprob.model_validate(body["content"][0], strict=True)
    assert (entry.token, entry.logprob, entry.bytes) == ("a", -9999.0, [97])
    first, second = entry.top_logprobs
    assert (first.token, first.bytes) == ("\\xf0\\x9f", [0xF0, 0x9F])
    assert second.logprob == -9999.0


def test_without_alternatives_the_list_is_empty() -> None:
    assert chat_content([Score(b"a", -0.1, ())])[0]["top_logprobs"] == []


def test_bytes_that_are_no_text_are_a_label_that_is_text() -> None:
    assert token_text("é".encode()) == "é"
    assert token_text(b"\xff ") == "\\xff "


def test_alternatives_are_spelt_as_the_chosen_token_is() -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=folders.byte_fallback())
    pieces = Tokenizer(fast)
    word = fast.convert_tokens_to_ids("▁")
    end = fast.convert_tokens_to_ids("</s>")
    top = ((word, -0.1), (end, -0.2))
    score = score_of(pieces, word, -0.1, top, first=False)
    assert (score.token, score.top) == (b" ", ((b" ", -0.1), (b"</s>", -0.2)))
    assert score_of(pieces, word, -0.1, (), first=True).token == b""
