"""Weights at the quantisation asked for: what is computed, held and said."""

from __future__ import annotations

import shutil
import threading
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ipc.messages import Load
from neurond import converted, needs
from neurond.config import Model
from neurond.device import convert, loader, weights
from neurond.device.backend import Resident
from neurond.device.linear import PackedLinear
from neurond.device.settings import DeviceSettings
from tests.neurond.device import tiny, tinygguf

CPU = torch.device("cpu")
IDS = torch.tensor([list(range(3, 40))])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its linear layers have columns that groups of 64 divide."""
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted, with its blocks."""
    folder = tmp_path_factory.mktemp("gguf")
    source = tinygguf.build(folder / "tiny.gguf")
    convert.convert(source, folder / "tiny", lambda _done: None, may_dequantise=False)
    return folder / "tiny"


def load(
    folder: Path,
    quant: str = "auto",
    *,
    dtype: str = "bfloat16",
    cache: Path | None = None,
    numerics: str = "fast",
    **options: Any,
) -> Resident:
    settings = DeviceSettings(
        packed_folder=str(cache or ""), threads=1, numerics=numerics
    )
    steps = loader.load(
        Load("org/m", str(folder), dtype, quant, 0, options), CPU, settings
    )
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            model: Resident = stop.value
            return model


def logits(model: Resident) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.body.module(input_ids=IDS, use_cache=False).logits
    return found[0].float()


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def rounded(weight: torch.Tensor, levels: int, group: int) -> torch.Tensor:
    """To `levels` equal steps from each group's least to its most; the step and the
    middle are bfloat16 numbers."""
    groups = weight.float().view(weight.shape[0], -1, group)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    step = ((high - low) / (levels - 1)).bfloat16().float()
    half = levels // 2
    middle = (low + half * step).bfloat16().float()
    steps = ((groups - middle) / step).round().clamp(-half, half)
    return steps.mul(step).add(middle).view_as(weight)


def reference(folder: Path, tmp_path: Path, levels: int, group: int) -> torch.Tensor:
    """Logits of the checkpoint with every linear weight rounded, in float32."""
    copy = Path(shutil.copytree(folder, tmp_path / "rounded"))
    tensors = load_file(copy / "model.safetensors")
    for name, tensor in tensors.items():
        if "proj" in name:
            tensors[name] = rounded(tensor, levels, group or tensor.shape[1])
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return logits(load(copy, "none", dtype="float32"))


@pytest.mark.parametrize("keep_dense", [False, True])
@pytest.mark.parametrize(
    ("quant", "levels", "group"), [("int8", 255, 0), ("int4", 16, 64)]
)
def test_quantised_weights_compute_what_their_rounded_values_do(
    llama: Path, tmp_path: Path, quant: str, levels: int, group: int, keep_dense: bool
) -> None:
    found = logits(load(llama, quant, keep_dense=keep_dense))
    assert distance(found, reference(llama, tmp_path, levels, group)) < 0.06


def test_without_quantisation_nothing_is_rounded_but_to_bfloat16(llama: Path) -> None:
    exact = logits(load(llama, "none", dtype="float32"))
    assert distance(logits(load(llama, "none")), exact) < 0.03
    four = distance(logits(load(llama, "int4")), exact)
    assert four > 2 * distance(logits(load(llama, "int8")), exact)


@pytest.mark.parametrize("keep_dense", [False, True])
def test_a_models_own_blocks_compute_what_they_stand_for(
    gguf: Path, keep_dense: bool
) -> None:
    model = load(gguf, keep_dense=keep_dense)
    assert (model.info["quant"], model.info["group_size"]) == ("q4_1", 32)
    exact = logits(load(gguf, "none", dtype="float32"))
    assert distance(logits(model), exact) < 0.03


def test_blocks_are_left_where_their_kernel_does_not_fit(gguf: Path) -> None:
    assert load(gguf, dtype="float32").info["quant"] == "none"
    assert load(gguf, dequantize=True).info["quant"] == "none"
    assert load(gguf, "int8").info["quant"] == "int8"


def test_a_folder_converted_before_blocks_were_kept_still_loads(
    gguf: Path, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(gguf, tmp_path / "old"))
    (old / converted.MARKER).unlink()
    assert load(old).info["quant"] == "none"
    (old / converted.BLOCKS_FILE).unlink()
    assert load(old).info["quant"] == "none"


@pytest.mark.parametrize(
    ("quant", "options"),
    [
        ("none", {}),
        ("int8", {}),
        ("int4", {}),
        ("int4", {"keep_dense": True, "group_size": 32}),
        ("auto", {}),
        ("auto", {"keep_dense": False}),
    ],
)
def test_admission_counts_what_is_then_resident(
    gguf: Path, quant: str, options: dict[str, Any]
) -> None:
    model = load(gguf, quant, **options)
    spec = Model("m", str(gguf), quant=quant, options=options)
    found = needs.of(spec, gguf, on_cpu=True)
    # the rotary table is made, not read; not all kernels need all that rows may
    more = model.resident_bytes - found.weights_bytes
    assert -0.15 * found.weights_bytes <= more <= 1024
    # two layers, K and V, two heads of 16 numbers of 2 bytes, 256 tokens
    assert found.kv_bytes == 2 * 2 * 2 * 16 * 2 * 256


def test_resident_bytes_are_those_of_the_storages_held(llama: Path) -> None:
    model = load(llama, "int4")
    module = model.body.module
    held = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in _tensors(module)
    }
    # a kernel may hold a few numbers per row that it makes by itself
    total = sum(held.values())
    assert total <= model.resident_bytes <= 1.05 * total
    dense = load(llama, "none")
    assert model.resident_bytes < 0.8 * dense.resident_bytes


def _tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        if isinstance(part, PackedLinear):
            for name, tensor in part.state().items():
                if name != "shape":
                    yield tensor


def test_every_linear_layer_of_the_text_is_packed_and_nothing_else(llama: Path) -> None:
    module = load(llama, "int8").body.module
    left = [m for m in module.modules() if type(m) is torch.nn.Linear]
    assert not left
    assert isinstance(module.lm_head, PackedLinear)
    assert type(module.get_input_embeddings()) is torch.nn.Embedding


def test_shards_are_packed_like_one_file(llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(llama)
    whole.save_pretrained(tmp_path / "shards", max_shard_size="100kB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for quant in ("none", "int4"):
        found = logits(load(tmp_path / "shards", quant))
        assert torch.equal(found, logits(load(llama, quant)))


def test_a_load_given_up_in_the_middle_leaves_no_thread(llama: Path) -> None:
    order = Load("m", str(llama), "bfloat16", "int4", 0, {})
    length = sum(1 for _ in loader.load(order, CPU))
    for stop_at in range(1, length, max(1, length // 12)):
        steps = loader.load(order, CPU)
        deque(islice(steps, stop_at), maxlen=0)  # or fewer: slices are timed
        steps.close()
        names = [thread.name for thread in threading.enumerate()]
        assert not [n for n in names if n.startswith(("load", "read"))]
    assert torch.get_default_dtype() == torch.float32


def test_progress_is_in_bytes_of_the_files_that_are_read(gguf: Path) -> None:
    order = Load("m", str(gguf), "auto", "auto", 0, {})
    told = [report.done for report in loader.load(order, CPU)]
    total = list(loader.load(order, CPU))[-1].total
    assert told == sorted(told)
    assert told[-1] == total
    dense = (gguf / "model.safetensors").stat().st_size
    kept = (gguf / converted.BLOCKS_FILE).stat().st_size
    assert kept < total < dense


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"group_size": 48}, "group_size 48 is not one of 32, 64, 128, 256"),
        ({"keep_dense": 1}, "keep_dense must be true or false"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    llama: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(Exception, match=words):
        load(llama, "int4", **options)


def test_packed_weights_are_kept_and_taken_and_checked(
    llama: Path, tmp_path: Path
) -> None:
    first = load(llama, "int4", cache=tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.name == "org%2Fm.int4.safetensors"
    stamp = file.stat().st_mtime_ns
    again = load(llama, "int4", cache=tmp_path)
    assert file.stat().st_mtime_ns == stamp
    assert torch.equal(logits(again), logits(first))
    assert again.resident_bytes == first.resident_bytes
    assert "notes" not in again.info
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    third = load(llama, "int4", cache=tmp_path)
    assert torch.equal(logits(third), logits(first))
    assert "is damaged" in third.info["notes"][0]
    assert "notes" not in load(llama, "int4", cache=tmp_path).info
    load(llama, "int4", cache=tmp_path, group_size=32)
    assert [f.name for f in tmp_path.iterdir()] == [file.name]


def test_what_has_no_quantisation_of_ours_is_not_kept(
    llama: Path, tmp_path: Path
) -> None:
    load(llama, "none", cache=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("numerics", ["fast", "invariant"])
def test_blocks_of_a_file_are_kept_packed_without_their_dense_form(
    gguf: Path, tmp_path: Path, numerics: str
) -> None:
    first = load(gguf, cache=tmp_path, numerics=numerics)
    (file,) = tmp_path.iterdir()
    stamp = file.stat().st_mtime_ns
    assert not any(".many." in entry.name for entry in weights.read_header(file))
    again = load(gguf, cache=tmp_path, numerics=numerics)
    assert file.stat().st_mtime_ns == stamp
    assert torch.equal(logits(again), logits(first))
    assert again.resident_bytes == first.resident_bytes
    assert torch.equal(logits(again), logits(load(gguf, numerics=numerics)))


def test_numerics_do_not_take_each_others_packed_blocks(
    gguf: Path, tmp_path: Path
) -> None:
    for numerics in ("fast", "invariant", "fast"):
        model = load(gguf, cache=tmp_path, numerics=numerics)
        assert "notes" not in model.info
    assert len(list(tmp_path.iterdir())) == 2
