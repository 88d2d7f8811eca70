from __future__ import annotations

import json
import os
import shutil
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ipc.messages import Load, Loaded, LoadFailed, LoadProgress
from ipc.status import StatusWriter, create_page
from neurond.device.backend import Resident
from neurond.device.loads import Loads
from tests.neurond.device import tiny
from tests.neurond.device.host import Host

Edit = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def host() -> Host:
    return Host()


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def edit_weights(folder: Path, edit: Edit) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_loaded_tells_what_is_resident(host: Host, llama: Path) -> None:
    loaded = host.load(llama)
    assert loaded.context == 512
    assert loaded.info == {
        "architecture": "LlamaForCausalLM",
        "dtype": "float32",
        "quant": "none",
        "num_parameters": loaded.info["num_parameters"],
        "golden": loaded.info["golden"],
        "known": loaded.info["known"],
        "vocab_size": tiny.VOCAB_SIZE,
        "has_vision": False,
        "numerics": "fast",
        "context_limited_by": "model",
        "page_tokens": 64,
        "bytes_per_token": 512,  # keys and values, 2 layers, 2 heads of 16 floats
    }
    # the tied head is counted once, and once only is it held
    tied = tiny.VOCAB_SIZE * 64
    weights = 4 * loaded.info["num_parameters"]
    assert weights <= loaded.resident_bytes < weights + 4 * tied
    assert host.engine.models["m"].eos_ids == {tiny.EOS}


def test_progress_is_in_bytes_and_never_falls(host: Host, llama: Path) -> None:
    reports = host.try_load(llama)
    progress = [r for r in reports if isinstance(r, LoadProgress)]
    stages = list(dict.fromkeys(r.stage for r in progress))
    assert stages == ["weights", "warmup"]
    last = [r for r in progress if r.stage == "weights"][-1]
    assert last.done == last.total
    size_bytes = (llama / "model.safetensors").stat().st_size
    assert 0 < size_bytes - last.total < 20_000
    assert isinstance(reports[-1], Loaded)


def test_the_context_can_be_lowered_but_not_raised(host: Host, llama: Path) -> None:
    assert host.load(llama, context=100).context == 100
    assert host.load(llama, context=100_000).context == 512


def test_the_dtype_can_be_chosen(host: Host, llama: Path) -> None:
    loaded = host.load(llama, dtype="bfloat16")
    assert loaded.info["dtype"] == "bfloat16"
    # the tied head has a copy of its own, in the layout of the matrix product
    tied = 2 * tiny.VOCAB_SIZE * 64
    assert loaded.resident_bytes < 2.1 * loaded.info["num_parameters"] + tied
    assert "'int3' is not one of bfloat16" in host.refusal(llama, dtype="int3")


def test_an_unknown_quant_is_refused_naming_the_allowed(
    host: Host, llama: Path
) -> None:
    words = "quant 'int3' is not one of auto, none, int8, int4"
    assert host.refusal(llama, quant="int3") == words


def test_missing_weights_are_refused_by_name(host: Host, copy: Path) -> None:
    def forget(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.0.mlp.up_proj.weight"]
        for name in [name for name in tensors if "layers.1." in name]:
            del tensors[name]

    edit_weights(copy, forget)
    message = host.refusal(copy)
    assert message.startswith(
        "the checkpoint lacks model.layers.0.mlp.up_proj.weight, "
        "model.layers.1.input_layernorm.weight"
    )
    assert message.endswith("and 5 more")


def test_a_weight_of_another_shape_is_refused(host: Host, copy: Path) -> None:
    def shrink(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = torch.ones(3)

    edit_weights(copy, shrink)
    host.refusal(copy)


def test_a_model_that_computes_nan_is_refused(host: Host, copy: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"].fill_(torch.nan)

    edit_weights(copy, damage)
    assert "computes NaN" in host.refusal(copy)


def test_code_in_the_folder_is_never_run(
    host: Host, copy: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "executed"
    code = f"open({str(marker)!r}, 'w')\nclass Config: ...\nclass Model: ..."
    (copy / "custom.py").write_text(code)
    auto_map = {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"}
    edit_config(copy, auto_map=auto_map)
    host.load(copy)
    edit_config(copy, model_type="something_new")
    host.refusal(copy)
    (copy / "custom_generate").mkdir()
    (copy / "custom_generate" / "generate.py").write_text(code)
    edit_config(copy, model_type="llama", architectures=["Model"])
    host.refusal(copy)
    assert not marker.exists()


def test_an_architecture_that_writes_no_text_is_refused(host: Host, copy: Path) -> None:
    edit_config(copy, architectures=["BertModel"])
    assert host.refusal(copy) == "'llama' is no architecture that writes text"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": 5}', "\ud800"])
def test_a_broken_config_is_refused(host: Host, copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text, errors="surrogatepass")
    host.refusal(copy)


def test_a_folder_that_is_not_there_is_refused(host: Host, tmp_path: Path) -> None:
    assert host.refusal(tmp_path / "none") == "the model folder has no config.json"


def test_a_broken_weights_file_is_refused_and_the_next_load_works(
    host: Host, llama: Path, copy: Path
) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(b"\xff" * 100 + path.read_bytes()[100:])
    assert "no valid safetensors header" in host.refusal(copy)
    host.load(llama)


def test_an_unloaded_models_bytes_come_back(host: Host, llama: Path) -> None:
    before = host.backend.memory()
    loaded = host.load(llama, model="other")
    held = host.backend.memory()
    host.engine.drop_model("other")
    assert before.total_bytes == held.total_bytes
    assert loaded.resident_bytes > 0
    assert "other" not in host.engine.models
    assert [row.name for row in host.page.read().models] == ["m"]


def test_tensors_that_the_model_has_no_use_for_are_told_in_the_journal(
    host: Host, copy: Path
) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.7.mlp.up_proj.weight"] = torch.ones(2, 2)
        tensors["extra.weight"] = torch.ones(2)

    edit_weights(copy, add)
    loaded = host.load(copy)
    line = "2 tensors of the checkpoint are not used: extra.weight, model.layers.7."
    assert line in host.written.getvalue()
    assert "notes" not in loaded.info


def test_a_model_larger_than_memory_is_refused_and_the_next_load_works(
    host: Host, llama: Path, copy: Path
) -> None:
    """The file is as long as its header says, and holds nothing (a sparse file)."""
    columns = 1 << 35
    tensor = {
        "dtype": "F32",
        "shape": [64, columns],
        "data_offsets": [0, 64 * columns * 4],
    }
    raw = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    path = copy / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    os.truncate(path, 8 + len(raw) + 64 * columns * 4)
    report = host.try_load(copy)[-1]
    assert isinstance(report, LoadFailed)
    assert report.error[0] == "insufficient_vram"
    host.load(llama)


def test_a_checkpoint_in_a_foreign_quantisation_is_refused_by_its_name(
    host: Host, copy: Path
) -> None:
    edit_config(copy, quantization_config={"quant_method": "awq", "bits": 4})
    assert host.refusal(copy) == "no kernel here computes awq checkpoints"


def test_a_load_that_is_cancelled_leaves_nothing_and_the_next_one_works(
    host: Host, llama: Path
) -> None:
    got: list[Resident] = []
    page = StatusWriter(create_page())
    loads = Loads(host.backend, page, generation=1, deadline_s=60, on_loaded=got.append)
    for num_slices in (1, 4, 9):
        loads.add(Load("given up", str(llama), "bfloat16", "int4", 0, {}))
        for _ in range(num_slices):
            loads.advance()
        loads.cancel("given up")
        assert not loads.busy
        names = [thread.name for thread in threading.enumerate()]
        assert not [name for name in names if name.startswith(("load", "read"))]
    loads.add(Load("wanted", str(llama), "bfloat16", "int4", 0, {}))
    while loads.busy:
        loads.advance()
    assert [model.name for model in got] == ["wanted"]
    host.backend.unload(got[0])
