"""What a model will hold, reckoned from its files' headers alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import HostError
from neurond import converted, needs
from neurond.config import Model
from neurond.converted import Marker
from neurond.quant import Form, Place, choose

CPU = Place(True, "bfloat16")
TEXT = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 256,
    "max_position_embeddings": 100_000,
}
TOKEN_BYTES = 2 * 2 * 32 * 2  # K and V, heads, width, bytes


def folder_at(path: Path, shapes: dict[str, list[int]], **config: Any) -> Path:
    header = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]}
        for name, shape in shapes.items()
    }
    raw = json.dumps({"__metadata__": {}, **header}).encode()
    path.mkdir(exist_ok=True)
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)
    (path / "config.json").write_text(json.dumps({**TEXT, **config}))
    return path


@pytest.mark.parametrize(
    ("config", "context", "layers_tokens"),
    [
        ({}, 0, 4 * 4096),
        ({}, 100, 4 * 100),
        ({"max_position_embeddings": 512}, 0, 4 * 512),
        ({"layer_types": ["linear_attention"] * 3 + ["full_attention"]}, 0, 4096),
        (
            {"layer_types": ["sliding_attention"] * 4, "sliding_window": 1024},
            0,
            4 * 1024,
        ),
        ({"text_config": TEXT}, 0, 4 * 4096),
    ],
)
def test_the_floor_is_the_kv_of_one_sequence(
    config: dict[str, Any], context: int, layers_tokens: int
) -> None:
    told = {**TEXT, **config}
    assert needs.kv_bytes(told, context, 2) == TOKEN_BYTES * layers_tokens


def test_a_config_that_tells_nothing_has_no_floor() -> None:
    assert needs.kv_bytes({}, 0, 2) == 0


@pytest.mark.parametrize(
    ("form", "linear_bytes"),
    [
        (Form("none", "none", "none"), 256 * 256 * 2),
        (Form("int8", "int8", "int8"), 256 * 256 + 256 * 12),
        (Form("int4", "int4", "int8", 64), 256 * 128 + 256 * 4 * 4),
        (Form("q4_1", "blocks", "int8", 32, True), 256 * (128 + 8 * 4 + 512)),
    ],
)
def test_a_layer_counts_in_its_form(form: Form, linear_bytes: int) -> None:
    shapes = {"model.layers.0.mlp.up_proj.weight": (256, 256)}
    assert needs.weights_bytes(shapes, form, CPU, tied=False) == linear_bytes


def test_norms_routers_towers_and_odd_shapes_stay_dense() -> None:
    shapes = {
        "model.layers.0.input_layernorm.weight": (256,),
        "model.layers.0.mlp.gate.weight": (16, 64),
        "model.visual.layers.0.fc.weight": (64, 64),
        "model.layers.0.mlp.up_proj.weight": (10, 50),
    }
    numbers = 256 + 16 * 64 + 64 * 64 + 10 * 50
    form = Form("int4", "int4", "int8", 64)
    assert needs.weights_bytes(shapes, form, CPU, tied=False) == 2 * numbers


def test_a_tied_head_is_held_beside_the_embedding() -> None:
    shapes = {"model.embed_tokens.weight": (512, 64)}
    plain, eight = Form("none", "none", "none"), Form("int8", "int8", "int8")
    numbers = 512 * 64
    assert needs.weights_bytes(shapes, plain, CPU, tied=True) == 4 * numbers
    gpu = Place(False, "bfloat16")
    assert needs.weights_bytes(shapes, plain, gpu, tied=True) == 2 * numbers
    found = needs.weights_bytes(shapes, eight, gpu, tied=True)
    assert found == 3 * numbers + 512 * 12


def test_a_folder_is_reckoned_at_the_dtype_and_quant_that_are_told(
    tmp_path: Path,
) -> None:
    shapes = {"model.layers.0.mlp.up_proj.weight": [256, 256], "lm_head.weight": [8, 8]}
    folder = folder_at(tmp_path / "m", shapes)
    numbers = 256 * 256 + 64
    found = needs.of(Model("m", "s"), folder, on_cpu=True)
    assert found == needs.Needs(2 * numbers, TOKEN_BYTES * 4 * 4096)
    assert found.total_bytes == 2 * numbers + TOKEN_BYTES * 4 * 4096
    single = needs.of(Model("m", "s", dtype="float32"), folder, on_cpu=True)
    assert single.weights_bytes == 4 * numbers
    assert single.kv_bytes == 2 * found.kv_bytes
    four = needs.of(Model("m", "s", quant="int4"), folder, on_cpu=True)
    assert four.weights_bytes < 0.3 * found.weights_bytes


def test_files_that_are_none_count_as_large_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(bytes(10))
    (tmp_path / "b.safetensors").write_bytes(bytes(7))
    (tmp_path / converted.BLOCKS_FILE).write_bytes(bytes(99))
    assert needs.of(Model("m", "s"), tmp_path, on_cpu=True).total_bytes == 17


def test_an_unknown_quant_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "m", {})
    with pytest.raises(HostError, match="'q8' is not one of auto, none, int8, int4"):
        needs.of(Model("m", "s", quant="q8"), folder, on_cpu=True)


MIB = 1 << 20
STRANGE = Marker(3 * MIB, 8 * MIB, {"Q4_K": 7, "Q6_K": 2, "F32": 1})


def test_blocks_without_a_kernel_are_refused_with_both_figures() -> None:
    with pytest.raises(HostError) as caught:
        choose("auto", {}, STRANGE, CPU)
    error = caught.value
    assert error.code == "load_failed"
    assert error.message == (
        "no kernel here computes Q4_K, Q6_K blocks: the file holds 3.00 MiB, "
        "dequantised it would be 8.00 MiB; set options.dequantize = true, or quant "
        "to none, int8 or int4"
    )
    assert error.fields == {"stored_bytes": 3 * MIB, "dequantised_bytes": 8 * MIB}


@pytest.mark.parametrize(
    ("quant", "options", "label"),
    [
        ("auto", {"dequantize": True}, "none"),
        ("none", {}, "none"),
        ("int8", {}, "int8"),
        ("int4", {}, "int4"),
    ],
)
def test_they_are_dequantised_where_somebody_says_so(
    quant: str, options: dict[str, Any], label: str
) -> None:
    assert choose(quant, options, STRANGE, CPU).label == label


def test_known_blocks_that_could_not_be_kept_are_refused_too() -> None:
    lost = Marker(3, 8, {"Q4_0": 7}, has_blocks=False)
    with pytest.raises(HostError, match="computes Q4_0 blocks"):
        choose("", {}, lost, CPU)
    plain = Marker(3, 8, {"F16": 7}, has_blocks=False)
    assert choose("", {}, plain, CPU).label == "none"


def test_kept_blocks_are_used_with_a_dense_copy_on_a_cpu_only() -> None:
    kept = Marker(3, 8, {"Q4_0": 7, "Q4_1": 1}, has_blocks=True)
    on_cpu = choose("auto", {}, kept, CPU)
    assert (on_cpu.label, on_cpu.kind, on_cpu.keep_dense) == (
        "q4_0+q4_1",
        "blocks",
        True,
    )
    assert not choose("auto", {}, kept, Place(False, "bfloat16")).keep_dense


def test_a_marker_of_another_format_is_none(tmp_path: Path) -> None:
    assert converted.read(tmp_path) is None
    converted.write(tmp_path, STRANGE)
    assert converted.read(tmp_path) == STRANGE
    (tmp_path / converted.MARKER).write_text("[]")
    assert converted.read(tmp_path) is None
