"""Packed weights on disk: used, rebuilt when damaged or stale, never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from neurond.device import packed, weights
from neurond.device.packed import Shelf, State

STATE = {
    "shape": torch.tensor([1, 2, 3]),
    "few.codes": torch.arange(24, dtype=torch.uint8).view(4, 6),
    "few.scale": torch.ones(4, dtype=torch.bfloat16),
}
LAYERS = ("layers.0.up", "layers.1.up")


def fill(path: Path, stamp: str = "s") -> Shelf:
    shelf = Shelf(path, stamp)
    for layer in LAYERS:
        shelf.put(layer, lambda: STATE, fresh=True)
    shelf.write()
    return shelf


def same(found: State | None) -> bool:
    return found is not None and all(
        torch.equal(found[name], tensor) for name, tensor in STATE.items()
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "packed" / "m.int4.safetensors"


def test_what_was_packed_is_taken_the_next_time(path: Path) -> None:
    assert not fill(path).notes
    shelf = Shelf(path, "s")
    assert same(shelf.take(LAYERS[0]))
    assert same(shelf.take(LAYERS[1]))
    assert shelf.take("layers.2.up") is None
    assert not shelf.notes
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_that_gave_everything_is_not_written_again(path: Path) -> None:
    fill(path)
    before = path.stat().st_mtime_ns
    shelf = Shelf(path, "s")
    shelf.put(LAYERS[0], lambda: STATE, fresh=False)
    shelf.write()
    assert path.stat().st_mtime_ns == before


def test_a_flipped_bit_is_noticed_and_the_file_made_anew(path: Path) -> None:
    fill(path)
    entry = weights.read_header(path)[1]
    raw = bytearray(path.read_bytes())
    raw[entry.offset + 3] ^= 4
    path.write_bytes(raw)
    shelf = Shelf(path, "s")
    assert shelf.take(LAYERS[0]) is None
    assert shelf.take(LAYERS[1]) is None  # nothing of a damaged file is believed
    assert "is damaged; it is made anew" in shelf.notes[0]
    assert len(shelf.notes) == 1
    fill(path)
    assert same(Shelf(path, "s").take(LAYERS[0]))


@pytest.mark.parametrize("size", [0, 5, 40, 300])
def test_a_file_that_is_cut_off_is_made_anew(path: Path, size: int) -> None:
    fill(path)
    path.write_bytes(path.read_bytes()[:size])
    shelf = Shelf(path, "s")
    assert shelf.take(LAYERS[0]) is None
    assert "is damaged" in shelf.notes[0]


def test_a_file_made_from_or_for_something_else_is_not_used(path: Path) -> None:
    fill(path, "of another torch")
    shelf = Shelf(path, "s")
    assert shelf.take(LAYERS[0]) is None
    assert "was made for something else" in shelf.notes[0]


def test_the_stamp_tells_plans_and_checkpoints_apart(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"a")
    first = packed.stamp(tmp_path, "avx512", "int4")
    assert first == packed.stamp(tmp_path, "avx512", "int4")
    assert first != packed.stamp(tmp_path, "avx2", "int4")
    os.utime(file, ns=(1, 1))
    assert first != packed.stamp(tmp_path, "avx512", "int4")


def test_a_disk_that_cannot_be_written_costs_the_cache_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    shelf = fill(tmp_path / "file" / "m.int4.safetensors")
    assert "packed weights are not kept" in shelf.notes[0]


def test_without_a_path_nothing_is_kept() -> None:
    shelf = Shelf(None, "")
    shelf.put(LAYERS[0], lambda: STATE, fresh=True)
    shelf.write()
    assert shelf.take(LAYERS[0]) is None


def test_sums_that_were_right_are_not_computed_again_for_the_same_file(
    path: Path,
) -> None:
    identity = fill(path).identity
    before = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    with path.open("r+b") as file:
        file.write(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for layer in LAYERS:  # only who computes the sums can see what was done
        assert Shelf(path, "s", trusted=identity).take(layer) is not None
    found = [Shelf(path, "s").take(layer) for layer in LAYERS]
    assert None in found


def test_a_file_that_is_another_one_now_is_not_trusted(path: Path) -> None:
    identity = fill(path).identity
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    shelf = Shelf(path, "s", trusted=identity)
    assert None in [shelf.take(layer) for layer in LAYERS]
    assert shelf.identity == []
