from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurond.device import fakemodel
from neurond.device.fakescript import IM_END
from tests.neurond.device.rig import chat_ids


@pytest.fixture(scope="module")
def tok(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import PreTrainedTokenizerFast

    folder = fakemodel.build(tmp_path_factory.mktemp("models") / "fake")
    return PreTrainedTokenizerFast.from_pretrained(folder)


def test_the_template_renders_the_prompt_the_fake_device_reads(tok: Any) -> None:
    messages = [{"role": "user", "content": "Grüße 🙂"}]
    rendered = tok.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True
    )
    assert tuple(rendered["input_ids"]) == chat_ids("Grüße 🙂")


@given(text=st.text())
def test_every_byte_is_one_token_and_back(tok: Any, text: str) -> None:
    ids = tok.encode(text)
    assert bytes(ids) == text.encode()
    assert tok.decode(ids) == text


def test_eos_is_the_end_of_turn_and_special(tok: Any) -> None:
    assert tok.eos_token_id == IM_END
    assert tok.decode([104, IM_END], skip_special_tokens=True) == "h"


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    folder = fakemodel.build(tmp_path / "fake", context=100)
    before = (folder / "config.json").stat().st_mtime_ns
    assert fakemodel.build(folder) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before
