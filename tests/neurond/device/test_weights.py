from __future__ import annotations

import itertools
import json
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ipc.errors import HostError
from neurond.device.weights import Reader, fetch, find_entries, view

CPU = torch.device("cpu")


def read(folder: Path, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    reader = Reader(CPU)
    for _ in reader.read(find_entries(folder), dtype):
        pass
    return reader.tensors


def refusal(folder: Path) -> str:
    with pytest.raises(HostError) as caught:
        read(folder)
    assert caught.value.code == "load_failed"
    return caught.value.message


def write_raw(folder: Path, header: Any, data: bytes = b"") -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = struct.pack("<Q", len(raw)) + raw + data
    (folder / "model.safetensors").write_bytes(file)


def test_what_was_saved_is_read_bit_by_bit(tmp_path: Path) -> None:
    saved = {
        "a": torch.randn(3, 5),
        "b": torch.randn(4, 2).bfloat16(),
        "c": torch.arange(6),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
    }
    save_file(saved, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tensors = read(tmp_path)
    assert set(tensors) == set(saved)
    for name, tensor in saved.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_floats_become_the_wanted_dtype_and_integers_stay(tmp_path: Path) -> None:
    saved = {"float": torch.randn(8), "int": torch.arange(6)}
    save_file(saved, tmp_path / "model.safetensors")
    tensors = read(tmp_path, torch.bfloat16)
    assert torch.equal(tensors["float"], saved["float"].bfloat16())
    assert tensors["int"].dtype == torch.int64


def test_a_large_tensor_is_read_in_slices_of_bounded_bytes(tmp_path: Path) -> None:
    saved = {"large": torch.randn(9_000_000), "small": torch.randn(2)}
    save_file(saved, tmp_path / "model.safetensors")
    for dtype in (None, torch.bfloat16):
        reader = Reader(CPU)
        told = [0, *reader.read(find_entries(tmp_path), dtype)]
        assert told[-1] == 36_000_008
        steps = [after - before for before, after in itertools.pairwise(told)]
        assert min(steps) >= 0
        assert max(steps) <= 16 << 20
        wanted = saved["large"].to(dtype or torch.float32)
        assert torch.equal(reader.tensors["large"], wanted)


def test_a_read_that_nobody_wants_any_more_leaves_no_thread(tmp_path: Path) -> None:
    save_file({"large": torch.randn(9_000_000)}, tmp_path / "model.safetensors")
    reading = Reader(CPU).read(find_entries(tmp_path), None)
    next(reading)
    reading.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("read")]


def test_shards_are_those_of_the_index(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "two.safetensors")
    save_file({"c": torch.ones(2)}, tmp_path / "unrelated.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(read(tmp_path)) == {"a", "b"}


def test_an_index_with_a_missing_shard_is_refused(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "one.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(tmp_path) == "the checkpoint lacks its file one.safetensors"


def test_an_index_that_points_outside_is_refused(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "../one.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "outside its folder" in refusal(tmp_path)


def test_a_folder_with_pickled_weights_only_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert "only pickled weights, which are never read" in refusal(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    assert "no weights" in refusal(tmp_path)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"not json at all",
        b"[1, 2]",
        {"a": 5},
        {"a": {**ENTRY, "dtype": "F1000"}},
        {"a": {**ENTRY, "shape": [3]}},
        {"a": {**ENTRY, "shape": [-2]}},
        {"a": {**ENTRY, "shape": "2"}},
        {"a": {**ENTRY, "data_offsets": [-8, 0]}},
        {"a": {**ENTRY, "data_offsets": [0]}},
        {"a": {"dtype": "F32"}},
        {},
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path, header: Any) -> None:
    write_raw(tmp_path, header, b"\0" * 8)
    refusal(tmp_path)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    write_raw(tmp_path, {"a": ENTRY}, b"\0" * 4)
    assert refusal(tmp_path) == "model.safetensors is cut off"
    (tmp_path / "model.safetensors").write_bytes(b"\1\2\3")
    assert "no valid safetensors header" in refusal(tmp_path)


def test_an_absurd_header_length_allocates_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    assert "no valid safetensors header" in refusal(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused_with_our_own_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    refusal(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.dictionaries(
        st.text(max_size=5),
        st.fixed_dictionaries(
            {},
            optional={
                "dtype": st.sampled_from(["F32", "BF16", "X"]) | st.integers(),
                "shape": st.lists(st.integers(-2, 4), max_size=3) | st.none(),
                "data_offsets": st.lists(st.integers(-8, 99), max_size=3) | st.text(),
            },
        ),
        max_size=3,
    )
)
def test_any_header_is_read_or_refused(tmp_path: Path, header: dict[str, Any]) -> None:
    write_raw(tmp_path, header, b"\0" * 64)
    try:
        read(tmp_path)
    except HostError:
        pass  # refused, in our own words; anything else fails the test


def test_a_tensor_in_the_pages_of_its_file_is_as_it_was_saved(tmp_path: Path) -> None:
    """Wherever it begins: pages are mapped from their own beginning."""
    saved = {f"t{n}": torch.randn(37, n + 1).bfloat16() for n in range(60)}
    save_file(saved, tmp_path / "model.safetensors")
    for entry in find_entries(tmp_path):
        seen = view(entry)
        assert torch.equal(seen, fetch(entry))
        seen.zero_()  # its own copy of the page, never the file's
    assert all(
        torch.equal(value, saved[name]) for name, value in read(tmp_path).items()
    )
