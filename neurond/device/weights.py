"""Reads safetensors straight into tensors, a bounded piece at a time.

Device process. A file is

    u64 header length │ header: JSON {name: {dtype, shape, data_offsets}} │ raw bytes

Pieces are read with pread into the final memory of a CPU tensor, or through one small
pinned buffer onto a GPU, so a load is never longer between two yields than a few pieces
and never holds a second copy. Pickled weights are not read at all.

Invariant: everything in a header is checked before memory is allocated for it.
"""

from __future__ import annotations

import json
import math
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ipc.errors import ServiceError, error_for

_PIECE_BYTES = 4 << 20
_SLICE_S = 0.02
_MAX_HEADER_BYTES = 100 << 20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies."""

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def find_entries(folder: Path) -> list[Entry]:
    """Every tensor of the folder's checkpoint, in file order. Raises load_failed."""
    entries = [entry for path in _files(folder) for entry in _read_header(path)]
    if not entries:
        raise refuse("the checkpoint holds no tensors")
    return entries


def refuse(message: str, **more: Any) -> ServiceError:
    return error_for("load_failed", message, **more)


def _files(folder: Path) -> list[Path]:
    """The shards the index names, or every .safetensors file."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise refuse("the checkpoint's index points outside its folder")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise refuse(f"the checkpoint lacks its file {missing[0]}")
        return [folder / name for name in names]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        why = "only pickled weights, which are never read" if pickled else "no weights"
        raise refuse(f"the folder has {why}; safetensors are needed")
    return found


def _read_header(path: Path) -> list[Entry]:
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size_bytes - 8):
            raise refuse(f"{path.name} has no valid safetensors header")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        entries = [_entry(path, 8 + length, *item) for item in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise refuse(f"{path.name} has no valid safetensors header") from error
    if any(entry.offset + entry.size_bytes > size_bytes for entry in entries):
        raise refuse(f"{path.name} is cut off")
    return sorted(entries, key=lambda entry: entry.offset)


def _entry(path: Path, base: int, name: str, told: dict[str, Any]) -> Entry:
    begin, end = told["data_offsets"]
    dtype = _DTYPES[told["dtype"]]
    shape = tuple(told["shape"])
    if begin < 0 or min(shape, default=0) < 0:
        raise ValueError(f"{name} has negative numbers")
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"{name} has {end - begin} bytes for its shape")
    return Entry(path, name, dtype, shape, base + begin, end - begin)


class Reader:
    """Fills a state dict on one device."""

    def __init__(self, device: torch.device) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._device = device
        self._staging: torch.Tensor | None = None
        if device.type == "cuda":
            self._staging = torch.empty(
                _PIECE_BYTES, dtype=torch.uint8, pin_memory=True
            )

    def read(self, entries: list[Entry], dtype: torch.dtype | None) -> Iterator[int]:
        """Yields the bytes read so far, every few pieces. Floats become `dtype`."""
        done = 0
        told_s = time.monotonic()
        for entry in entries:
            tensor = torch.empty(entry.shape, dtype=entry.dtype, device=self._device)
            for size_bytes in self._fill(tensor, entry):
                done += size_bytes
                if time.monotonic() - told_s >= _SLICE_S:
                    yield done
                    told_s = time.monotonic()
            if dtype is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            self.tensors[entry.name] = tensor

    def _fill(self, tensor: torch.Tensor, entry: Entry) -> Iterator[int]:
        raw = tensor.reshape(-1).view(torch.uint8)
        fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for begin in range(0, entry.size_bytes, _PIECE_BYTES):
                piece = raw[begin : begin + _PIECE_BYTES]
                self._fill_piece(fd, piece, entry.offset + begin)
                yield len(piece)
        finally:
            os.close(fd)

    def _fill_piece(self, fd: int, piece: torch.Tensor, offset: int) -> None:
        if self._staging is None:
            _read_exactly(fd, piece, offset)
        else:
            staged = self._staging[: len(piece)]
            _read_exactly(fd, staged, offset)
            piece.copy_(staged)


def _read_exactly(fd: int, piece: torch.Tensor, offset: int) -> None:
    view = piece.numpy().data
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            raise refuse("a weights file shrank while it was read")
        done += count
