from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurond.device import fakemodel
from neurond.device.fakescript import IM_END
from tests.neurond.device.rig import chat_ids

_CACHE: dict[Path, object] = {}


def tokenizer(folder: Path) -> object:
    from transformers import PreTrainedTokenizerFast

    if folder not in _CACHE:
        _CACHE[folder] = PreTrainedTokenizerFast.from_pretrained(folder)
    return _CACHE[folder]


def test_the_template_renders_the_prompt_the_fake_device_reads(tmp_path: Path) -> None:
    tok = tokenizer(fakemodel.build(tmp_path / "fake"))
    messages = [{"role": "user", "content": "Grüße 🙂"}]
    rendered = tok.apply_chat_template(  # type: ignore[attr-defined]
        messages, add_generation_prompt=True, return_dict=True
    )
    assert tuple(rendered["input_ids"]) == chat_ids("Grüße 🙂")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_every_byte_is_one_token_and_back(tmp_path: Path, text: str) -> None:
    tok = tokenizer(fakemodel.build(tmp_path / "fake"))
    ids = tok.encode(text)  # type: ignore[attr-defined]
    assert bytes(ids) == text.encode()
    assert tok.decode(ids) == text  # type: ignore[attr-defined]


def test_eos_is_the_end_of_turn_and_special(tmp_path: Path) -> None:
    tok = tokenizer(fakemodel.build(tmp_path / "fake"))
    assert tok.eos_token_id == IM_END  # type: ignore[attr-defined]
    assert tok.decode([104, IM_END], skip_special_tokens=True) == "h"  # type: ignore[attr-defined]


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    folder = fakemodel.build(tmp_path / "fake", context=100)
    before = (folder / "config.json").stat().st_mtime_ns
    assert fakemodel.build(folder) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before
