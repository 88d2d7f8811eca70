"""Envelopes of text completions: the prompt first, where it is wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ipc.messages import PromptScores
from neurond.serving import textframes
from neurond.serving.choice import Choice, Order, Shown
from neurond.serving.detokenize import Detokenizer
from neurond.serving.generation import Usage
from neurond.serving.logprobs import Score
from neurond.serving.openai import KEEP_ALIVE
from neurond.serving.textframes import Continued, PromptText, Style, Teller, TextFrames
from neurond.serving.tokenizer import load
from tests.neurond.serving import folders
from tests.neurond.serving.lines import submit
from tests.neurond.serving.test_generation import Letters

ENVELOPE = textframes.new_envelope("m", 7)
PROMPT = PromptText("ab", (97, 98), Letters())
SHOWN = Shown("c", [Score(b"c", -1.0, ())])


def choice() -> Choice:
    made = Choice(
        Order(submit(), 1, (), Letters(), True),
        clock=lambda: 0.0,
        on_change=lambda: None,
        on_stop=lambda _choice: None,
    )
    made.on_scores(PromptScores(0, 1, (-2.0,)))
    return made


def teller(
    *, echo: bool = False, logprobs: int = -1, prompt: PromptText = PROMPT
) -> Teller:
    return Teller(Style(echo, logprobs, -1), prompt, choice())


def texts(data: bytes) -> list[Any]:
    """Text and logprobs' tokens of each frame."""
    found = []
    for frame in data.decode().split("\n\n"):
        if frame.startswith("data: "):
            (said,) = json.loads(frame[6:])["choices"]
            found.append((said["text"], (said["logprobs"] or {}).get("tokens")))
    return found


def test_a_stream_commits_at_once_and_begins_with_the_prompt_where_it_is_wanted() -> (
    None
):
    plain = TextFrames(ENVELOPE, [teller()], include_usage=False)
    assert plain.begin(0) == KEEP_ALIVE
    echoed = TextFrames(ENVELOPE, [teller(echo=True)], include_usage=False)
    assert texts(echoed.begin(0)) == [("ab", None)]
    assert texts(echoed.shown(0, SHOWN)) == [("c", None)]


def test_a_prompt_with_scores_waits_for_them() -> None:
    frames = TextFrames(ENVELOPE, [teller(echo=True, logprobs=0)], include_usage=True)
    assert texts(frames.begin(0)) == []
    assert texts(frames.shown(0, SHOWN)) == [("ab", ["a", "b"]), ("c", ["c"])]
    assert texts(frames.finish(0, "stop")) == [("", None)]


def test_an_answer_of_nothing_has_its_prompt_all_the_same() -> None:
    frames = TextFrames(ENVELOPE, [teller(echo=True, logprobs=0)], include_usage=False)
    frames.begin(0)
    assert texts(frames.finish(0, "length")) == [("ab", ["a", "b"]), ("", None)]


def test_a_whole_answer_without_tokens_has_empty_lists() -> None:
    told = teller(logprobs=0).whole(Shown("", []), "stop", 3)
    assert (told["index"], told["text"]) == (3, "")
    assert told["logprobs"]["tokens"] == []
    assert teller().whole(SHOWN, "stop", 0)["logprobs"] is None


def test_a_prompt_of_ids_is_shown_with_its_special_tokens() -> None:
    prompt = PromptText(None, (256, 97, 0xC3, 0xA9), Letters())
    told = teller(echo=True, logprobs=0, prompt=prompt).whole(SHOWN, "stop", 0)
    assert told["text"] == "<end>aéc"
    assert told["logprobs"]["text_offset"] == [0, 5, 6, 6, 7]


def test_the_figures_have_no_choices() -> None:
    frames = TextFrames(ENVELOPE, [teller()], include_usage=True)
    document = json.loads(frames.usage(Usage(3, 2, 1))[6:])
    assert document["choices"] == []
    assert document["usage"]["total_tokens"] == 5
    assert document["object"] == "text_completion"


def test_a_text_that_goes_on_keeps_the_space_it_begins_with(tmp_path: Path) -> None:
    """Decoders that join words drop it from the first token of a text."""
    tokenizer = load(folders.write(tmp_path / "m", folders.byte_fallback()))
    ids = tokenizer.encode_text("a", add_special_tokens=False)
    assert Detokenizer(tokenizer).push(ids) == "a"
    assert Detokenizer(Continued(tokenizer)).push(ids) == " a"
