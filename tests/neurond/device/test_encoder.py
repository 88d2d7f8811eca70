"""Vectors against transformers itself, on tiny random models of several families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    Qwen3Config,
    Qwen3Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from ipc.messages import Failed, Finished, RingUp, Vector
from neurond.device import encoder
from neurond.device.backend import Row
from neurond.device.encoder import EncoderBody
from neurond.device.pooling import Pooling
from tests.neurond.device.host import WORKER, Host
from tests.neurond.device.rig import make_submit

TOLERANCE = 1e-5
VOCAB_SIZE = 256
PAD = 1
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": PAD,
}
FAMILIES = ("bert", "xlm_roberta", "modernbert", "qwen3")
MODES = {"bert": "mean", "xlm_roberta": "cls", "modernbert": "max", "qwen3": "last"}
FLAGS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "last": "pooling_mode_lasttoken",
}
# alone, repetitive, correlated, with pad and other special ids inside, long and short
TEXTS: tuple[tuple[int, ...], ...] = (
    (7,),
    (9, 9, 9, 9, 9, 9),
    tuple(range(10, 40)),
    tuple(range(10, 41)),
    (PAD, 5, PAD, 0, 2, 200),
    tuple(i * 37 % 250 + 2 for i in range(60)),
)


def make(family: str) -> Any:
    torch.manual_seed(3)
    if family == "bert":
        config = BertConfig(**_COMMON, max_position_embeddings=64)
        return BertModel(config, add_pooling_layer=False)
    if family == "xlm_roberta":
        config = XLMRobertaConfig(**_COMMON, max_position_embeddings=66)
        return XLMRobertaModel(config)
    if family == "modernbert":
        special = dict.fromkeys(("cls_token_id", "sep_token_id"), 2)
        special |= dict.fromkeys(("bos_token_id", "eos_token_id"), 2)
        config = ModernBertConfig(
            **_COMMON, **special, max_position_embeddings=64, local_attention=8
        )
        return ModernBertModel(config)
    more = {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    return Qwen3Model(Qwen3Config(**_COMMON, **more))


def build(folder: Path, family: str, *, mode: str = "", normalise: bool = True) -> Path:
    model = make(family).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                parameter.mul_(6)  # so that one text's vector is not the next one's
    model.save_pretrained(folder)
    if family == "qwen3":  # embedders made of writers keep the writer's name
        edit(folder / "config.json", architectures=["Qwen3ForCausalLM"])
    as_sentence_model(folder, mode or MODES[family], normalise=normalise)
    return folder


def as_sentence_model(folder: Path, mode: str, *, normalise: bool = True) -> None:
    kinds = ["Transformer", "Pooling", *["Normalize"] * normalise]
    paths = {"Pooling": "1_Pooling"}
    modules = [
        {"idx": i, "path": paths.get(kind, ""), "type": f"sentence_transformers.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    flags = {flag: name == mode for name, flag in FLAGS.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(flags))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reference(folder: Path, ids: tuple[int, ...], mode: str) -> Any:
    """By transformers alone: one text, no padding, no mask."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        # a pad id inside a text is a token like others
        mask = torch.ones((1, len(ids)), dtype=torch.long)
        hidden = model(torch.tensor([ids]), attention_mask=mask).last_hidden_state[0]
    pooled = {
        "mean": lambda: hidden.mean(0),
        "cls": lambda: hidden[0],
        "max": lambda: hidden.amax(0),
        "last": lambda: hidden[-1],
    }[mode]()
    return (pooled / pooled.norm()).numpy()


def embedded(host: Host, *texts: tuple[int, ...]) -> list[Any]:
    """Through the engine, all submitted at once."""
    messages = drained(host, *texts)
    assert not [m for m in messages if isinstance(m, Failed)], messages
    found = {m.id: np.frombuffer(m.values, "<f4") for m in messages if _is_vector(m)}
    return [found[number] for number in range(len(texts))]


def drained(host: Host, *texts: tuple[int, ...]) -> list[RingUp]:
    for number, ids in enumerate(texts):
        submit = make_submit(number, ids, max_tokens=0, embed=True)
        host.engine.submit(WORKER, submit)
    return host.drain()


def _is_vector(message: RingUp) -> bool:
    return isinstance(message, Vector)


def values(outcome: object) -> Any:
    assert isinstance(outcome, Row), outcome
    assert outcome.vector is not None
    return np.frombuffer(outcome.vector, "<f4")


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Host]:
    family: str = request.param
    folder = build(tmp_path_factory.mktemp(family), family)
    host = Host()
    host.load(folder)
    return family, folder, host


def test_each_text_has_the_vector_that_transformers_gives(
    loaded: tuple[str, Path, Host],
) -> None:
    family, folder, host = loaded
    for ids, vector in zip(TEXTS, embedded(host, *TEXTS), strict=True):
        wanted = reference(folder, ids, MODES[family])
        np.testing.assert_allclose(vector, wanted, atol=TOLERANCE)


def test_s84_a_text_among_others_has_the_vector_that_it_has_alone(
    loaded: tuple[str, Path, Host],
) -> None:
    body: EncoderBody = loaded[2].engine.models["m"].body
    with torch.inference_mode():
        together = encoder.vectors(body, TEXTS)
        for ids, outcome in zip(TEXTS, together, strict=True):
            (alone,) = encoder.vectors(body, [ids])
            np.testing.assert_allclose(
                values(outcome), values(alone), atol=TOLERANCE, err_msg=str(ids)
            )


def test_a_text_longer_than_a_chunk_of_prefill_is_computed_whole(
    tmp_path: Path,
) -> None:
    host = Host(prefill_chunk=16)
    folder = build(tmp_path, "bert")
    host.load(folder)
    short, long = embedded(host, TEXTS[0], TEXTS[5])
    np.testing.assert_allclose(short, reference(folder, TEXTS[0], "mean"), atol=1e-5)
    np.testing.assert_allclose(long, reference(folder, TEXTS[5], "mean"), atol=1e-5)


def test_in_invariant_a_text_has_the_same_bits_in_any_company(tmp_path: Path) -> None:
    host = Host(numerics="invariant")
    host.load(build(tmp_path, "bert"))
    together = embedded(host, *TEXTS)
    for ids, vector in zip(TEXTS, together, strict=True):
        assert embedded(host, ids)[0].tobytes() == vector.tobytes()


def test_texts_that_differ_have_vectors_that_differ(
    loaded: tuple[str, Path, Host],
) -> None:
    vectors = embedded(loaded[2], *TEXTS)
    for index, left in enumerate(vectors):
        for right in vectors[index + 1 :]:
            assert abs(left - right).max() > 1e-3


def test_the_answer_is_a_vector_and_then_the_end(
    loaded: tuple[str, Path, Host],
) -> None:
    vector, finished = [m for m in drained(loaded[2], TEXTS[2]) if m.id == 0]  # type: ignore[union-attr]
    assert isinstance(vector, Vector)
    assert finished == Finished(0, "stop", len(TEXTS[2]), 0, 0)


def test_the_model_says_what_it_is(tmp_path: Path) -> None:
    host = Host()
    loaded = host.load(build(tmp_path, "xlm_roberta"))
    assert loaded.context == 64  # positions are counted from behind the pad id
    told = {name: loaded.info[name] for name in ("kind", "dimensions", "dtype")}
    assert told == {"kind": "embedding", "dimensions": 32, "dtype": "float32"}
    assert loaded.resident_bytes > 0


def test_a_text_that_fills_the_window_is_computed(tmp_path: Path) -> None:
    host = Host()
    host.load(build(tmp_path, "xlm_roberta"))
    assert len(embedded(host, tuple([5] * 64))[0]) == 32


def test_the_makers_length_limit_is_the_window_unless_told(tmp_path: Path) -> None:
    folder = build(tmp_path, "bert")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 40}')
    assert Host().load(folder).context == 40
    assert Host().load(folder, context=48).context == 48
    assert Host().load(folder, context=4096).context == 64


def test_without_modules_json_a_headless_class_is_pooled_by_its_mean(
    tmp_path: Path,
) -> None:
    folder = build(tmp_path, "bert")
    (folder / "modules.json").unlink()
    host = Host()
    host.load(folder)
    wanted = reference(folder, TEXTS[2], "mean")
    np.testing.assert_allclose(embedded(host, TEXTS[2])[0], wanted, atol=TOLERANCE)


def test_a_folder_that_does_not_normalise_is_not_normalised(tmp_path: Path) -> None:
    host = Host()
    host.load(build(tmp_path, "bert", normalise=False))
    assert np.linalg.norm(embedded(host, TEXTS[2])[0]) > 1.5


def test_a_dense_layer_behind_the_pooling_is_refused(tmp_path: Path) -> None:
    folder = build(tmp_path, "bert")
    modules = json.loads((folder / "modules.json").read_text())
    dense = {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([*modules, dense]))
    assert "Dense" in Host().refusal(folder)


def test_a_pooling_that_is_not_known_is_refused(tmp_path: Path) -> None:
    folder = build(tmp_path, "bert")
    flags = {"pooling_mode_weightedmean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    assert "weightedmean" in Host().refusal(folder)


def test_a_pooling_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    folder = build(tmp_path, "bert")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "../1_Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "outside" in Host().refusal(folder)


def test_weights_that_compute_nan_are_refused(tmp_path: Path) -> None:
    folder = build(tmp_path, "bert")
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight[0, 0] = torch.nan
    model.save_pretrained(folder)
    assert "NaN" in Host().refusal(folder)


def test_s02_a_row_with_nan_fails_alone(tmp_path: Path) -> None:
    host = Host()
    host.load(build(tmp_path, "bert"))
    body: EncoderBody = host.engine.models["m"].body
    (sound,) = embedded(host, TEXTS[2])
    with torch.no_grad():
        body.module.embeddings.word_embeddings.weight[77] = torch.nan
    messages = drained(host, TEXTS[2], (3, 77, 4), TEXTS[3])
    failed = [m for m in messages if isinstance(m, Failed)]
    assert [(m.id, m.error[0]) for m in failed] == [(1, "nan_logits")]
    vectors = {m.id: m.values for m in messages if isinstance(m, Vector)}
    np.testing.assert_allclose(np.frombuffer(vectors[0], "<f4"), sound, atol=TOLERANCE)


@pytest.mark.parametrize(("embed", "says"), [(False, "embeddings"), (True, "text")])
def test_the_device_refuses_the_other_kind_of_work(
    tmp_path: Path, embed: bool, says: str
) -> None:
    from tests.neurond.device import tiny

    host = Host()
    host.load(tiny.build("llama", tmp_path) if embed else build(tmp_path, "bert"))
    refused = host.engine.submit(WORKER, make_submit(1, (5, 6), embed=embed))
    assert isinstance(refused, Failed)
    assert refused.error[0] == "wrong_modality"
    assert says in refused.error[1]


@given(st.lists(st.integers(1, 5000), max_size=60))
def test_buckets_hold_each_text_once_and_are_well_filled(lengths: list[int]) -> None:
    found = list(encoder.buckets(dict(enumerate(lengths))))
    assert sorted(index for group in found for index in group) == list(
        range(len(lengths))
    )
    for group in found:
        width = max(lengths[index] for index in group)
        assert len(group) == 1 or len(group) * width <= 4096
        assert min(lengths[index] for index in group) >= width * 0.75 - 8


def test_padding_counts_in_no_pooling() -> None:
    hidden = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [99.0, 99.0]]])
    mask = torch.tensor([[1, 1, 0]])
    found = {
        mode: Pooling(mode, normalise=False).apply(hidden, mask)[0].tolist()
        for mode in ("mean", "cls", "max", "lasttoken")
    }
    assert found == {
        "mean": [2.0, -3.0],
        "cls": [1.0, -2.0],
        "max": [3.0, -2.0],
        "lasttoken": [3.0, -4.0],
    }
