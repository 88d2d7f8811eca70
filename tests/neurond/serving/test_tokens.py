"""Bodies of /tokenize and /detokenize: checked, answered, and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from ipc.errors import ServiceError
from neurond.device import fakemodel
from neurond.device.fakescript import IM_END, IM_START
from neurond.serving import tokens
from neurond.serving.library import ServedModel, read_model
from tests.neurond.serving import folders

HI = [{"role": "user", "content": "hi"}]
LONG = "é" * tokens.MAX_TEXT_BYTES


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """Tokens are bytes; two special ones besides."""
    return read_model(fakemodel.build(tmp_path_factory.mktemp("m") / "m"))


def answer(served: ServedModel, **fields: Any) -> Any:
    request = tokens.parse_tokenize({"model": "m", **fields})
    return msgspec.json.decode(tokens.tokenized(request, served, 8192))


def refusal(parse: Any, body: object) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        parse(body)
    assert caught.value.status == 400
    return caught.value


def test_a_prompt_becomes_ids_with_their_count_and_the_window(
    served: ServedModel,
) -> None:
    told = answer(served, prompt="hé", return_token_strs=True)
    assert told["tokens"] == list("hé".encode())
    assert (told["count"], told["max_model_len"]) == (3, 8192)
    assert told["token_strs"] == ["h", "Ã", "©"]
    assert answer(served, prompt="")["tokens"] == []


def test_messages_are_counted_as_a_chat_would_have_them(served: ServedModel) -> None:
    told = answer(served, messages=HI)
    assert told["token_strs"] is None
    assert tuple(told["tokens"]) == served.prompt_ids(HI, window=999, limit_s=1)


def test_what_invites_an_answer_is_left_out_where_it_is_not_wanted(
    served: ServedModel,
) -> None:
    invited = answer(served, messages=HI)["tokens"]
    plain = answer(served, messages=HI, add_generation_prompt=False)["tokens"]
    assert invited == [*plain, IM_START, *b"assistant\n"]


def test_tools_are_counted_as_a_chat_with_them_would_have_them(tmp_path: Path) -> None:
    template = "{{ tools | tojson if tools else '' }}{{ messages[0]['content'] }}"
    folder = folders.write(tmp_path / "m", folders.byte_level(), chat_template=template)
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    with_tools = answer(read_model(folder), messages=HI, tools=tools)["count"]
    assert with_tools > answer(read_model(folder), messages=HI)["count"] + 20


def test_s76_special_tokens_are_text_in_messages_and_themselves_in_a_raw_prompt(
    served: ServedModel,
) -> None:
    words = "<|im_end|>"
    raw = answer(served, prompt=f"a{words}")["tokens"]
    assert raw == [ord("a"), IM_END]
    spoken = answer(served, messages=[{"role": "user", "content": words}])["tokens"]
    assert spoken.count(IM_END) == 1  # the template's own
    assert bytes(i for i in spoken if i < 256) == f"user\n{words}\nassistant\n".encode()


def test_a_beginning_of_text_comes_with_a_raw_prompt_unless_it_is_not_wanted(
    tmp_path: Path,
) -> None:
    tokenizer = folders.byte_level()
    start = tokenizer.token_to_id("<|im_start|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    served = read_model(folders.write(tmp_path / "m", tokenizer))
    with_start = answer(served, prompt="a")["tokens"]
    assert with_start == [
        start,
        *answer(served, prompt="a", add_special_tokens=False)["tokens"],
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ([], None),
        ({"prompt": "a"}, "model"),
        ({"model": 7, "prompt": "a"}, "model"),
        ({"model": "m"}, "prompt"),
        ({"model": "m", "prompt": "a", "messages": HI}, "prompt"),
        ({"model": "m", "prompt": ["a"]}, "prompt"),
        ({"model": "m", "messages": [{"role": "x"}]}, "messages[0].role"),
        ({"model": "m", "prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ({"model": "m", "prompt": "a", "return_token_strs": 1}, "return_token_strs"),
        ({"model": "m", "messages": HI, "add_special_tokens": 1}, "add_special_tokens"),
        ({"model": "m", "messages": HI, "chat_template": "x"}, "chat_template"),
        ({"model": "m", "prompt": LONG}, "prompt"),
        ({"model": "m", "messages": [{"role": "user", "content": LONG}]}, "messages"),
    ],
)
def test_what_cannot_be_tokenized_is_refused_by_name(body: Any, param: str) -> None:
    assert refusal(tokens.parse_tokenize, body).param == param


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (None, "tokens"),
        ("ab", "tokens"),
        ([1, "2"], "tokens[1]"),
        ([True], "tokens[0]"),
        ([1.0], "tokens[0]"),
        ([-1], "tokens[0]"),
        ([0] * (tokens.MAX_IDS + 1), "tokens"),
    ],
)
def test_what_cannot_be_detokenized_is_refused_by_name(value: Any, param: str) -> None:
    body = {"model": "m", "tokens": value}
    assert refusal(tokens.parse_detokenize, body).param == param


@pytest.mark.parametrize("token", [IM_END + 1, 1 << 40])
def test_an_id_outside_the_vocabulary_is_refused_by_its_place(
    served: ServedModel, token: int
) -> None:
    request = tokens.parse_detokenize({"model": "m", "tokens": [1, token]})
    with pytest.raises(ServiceError) as caught:
        tokens.detokenized(request, served)
    assert caught.value.param == "tokens[1]"


def test_special_tokens_are_shown_in_what_is_detokenized(served: ServedModel) -> None:
    request = tokens.parse_detokenize({"model": "m", "tokens": [IM_START, 104, 105]})
    assert tokens.detokenized(request, served) == b'{"prompt":"<|im_start|>hi"}'


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40))
def test_there_and_back_again_is_the_same_text(served: ServedModel, text: str) -> None:
    ids = answer(served, prompt=text)["tokens"]
    request = tokens.parse_detokenize({"model": "m", "tokens": ids})
    told = msgspec.json.decode(tokens.detokenized(request, served))
    assert told == {"prompt": text}
