"""Reads safetensors straight into tensors, a bounded piece at a time.

Device process. A file is

    u64 header length │ header: JSON {name: {dtype, shape, data_offsets}} │ raw bytes

Pieces are read with pread on a thread, a bounded number ahead, into the final memory of
a CPU tensor or through a few small (on a GPU pinned) buffers, so a load is never longer
between two yields than a few pieces and never holds a second copy. Pickled weights are
not read at all.

Invariant: everything in a header is checked before memory is allocated for it.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ipc.errors import ServiceError, error_for
from neurond.converted import BLOCKS_FILE
from neurond.device.turns import Patience

_PIECE_BYTES = 4 << 20
_SLICE_BYTES = 16 << 20
_READ_AHEAD = 8
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
    entries = [entry for path in _files(folder) for entry in read_header(path)]
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
    there = sorted(folder.glob("*.safetensors"))
    found = [path for path in there if path.name != BLOCKS_FILE]
    if not found:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        why = "only pickled weights, which are never read" if pickled else "no weights"
        raise refuse(f"the folder has {why}; safetensors are needed")
    return found


def read_header(path: Path) -> list[Entry]:
    """The tensors of one file, in its order. Raises load_failed."""
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
    """Fills a state dict on one device, reading ahead on a thread of its own.

    Pieces that need no conversion are read into their final memory; the others, and all
    for a GPU, go through a fixed set of buffers.
    """

    def __init__(self, device: torch.device) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._device = device
        self._buffers: deque[torch.Tensor] = deque()

    def read(
        self, entries: list[Entry], dtype: torch.dtype | None
    ) -> Generator[int, None, None]:
        """Yields the bytes read so far, at most 16 MiB at a time, or nothing new while
        the disk is waited for. Floats become `dtype`."""
        done = told = 0
        patience = Patience()
        ahead: deque[tuple[Future[None], _Piece]] = deque()
        pieces = self._pieces(entries, dtype)
        with ThreadPoolExecutor(1, "read") as pool:
            try:
                while self._read_on(pool, pieces, ahead):
                    future, piece = ahead[0]
                    if done - told > _SLICE_BYTES - _PIECE_BYTES:
                        told = done
                        yield done
                    while not patience.wait(future):
                        told = done
                        yield done
                    ahead.popleft()
                    future.result()
                    self._place(piece)
                    done += piece.memory.numel()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        yield done

    def _read_on(
        self,
        pool: ThreadPoolExecutor,
        pieces: Iterator[_Piece],
        ahead: deque[tuple[Future[None], _Piece]],
    ) -> bool:
        """Keep the thread busy. Whether anything is under way."""
        while len(ahead) < _READ_AHEAD and (piece := next(pieces, None)) is not None:
            job = pool.submit(_read_piece, piece.path, piece.memory, piece.offset)
            ahead.append((job, piece))
        return bool(ahead)

    def _pieces(
        self, entries: list[Entry], dtype: torch.dtype | None
    ) -> Iterator[_Piece]:
        for entry in entries:
            wanted = (
                dtype if dtype is not None and entry.dtype.is_floating_point else None
            )
            final = torch.empty(
                entry.shape, dtype=wanted or entry.dtype, device=self._device
            )
            self.tensors[entry.name] = final
            flat = final.view(-1)
            step = _PIECE_BYTES // entry.dtype.itemsize
            for begin in range(0, flat.numel(), step):
                part = flat[begin : begin + step]
                yield self._piece(
                    entry, part, entry.offset + begin * entry.dtype.itemsize
                )

    def _piece(self, entry: Entry, part: torch.Tensor, offset: int) -> _Piece:
        if part.device.type == "cpu" and part.dtype == entry.dtype:
            return _Piece(entry.path, part.view(torch.uint8), offset, None, part)
        buffer = self._buffer()
        memory = buffer[: part.numel() * entry.dtype.itemsize]
        return _Piece(entry.path, memory, offset, buffer, part, entry.dtype)

    def _buffer(self) -> torch.Tensor:
        if self._buffers:
            return self._buffers.popleft()
        pinned = self._device.type == "cuda"
        return torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=pinned)

    def _place(self, piece: _Piece) -> None:
        """From its buffer to where it belongs; converted on the device."""
        if piece.buffer is None or piece.dtype is None:
            return
        read = piece.memory.view(piece.dtype)
        if self._device.type == "cuda":
            read = read.to(self._device)  # waits: the buffer is free again
        piece.final.copy_(read)
        self._buffers.append(piece.buffer)


def fetch(entry: Entry) -> torch.Tensor:
    """One tensor as it is stored, on the host. Blocks; leaves the interpreter alone."""
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    _read_piece(entry.path, tensor.view(-1).view(torch.uint8), entry.offset)
    return tensor


def view(entry: Entry) -> torch.Tensor:
    """One tensor as it is stored, in the pages of its file: for a single reading, as
    who cuts the file off ends the process that looks at it."""
    skipped = entry.offset % mmap.ALLOCATIONGRANULARITY
    with entry.path.open("rb") as file:
        pages = mmap.mmap(
            file.fileno(),
            skipped + entry.size_bytes,
            flags=mmap.MAP_PRIVATE,
            offset=entry.offset - skipped,
        )
    count = math.prod(entry.shape)
    flat = torch.frombuffer(pages, dtype=entry.dtype, count=count, offset=skipped)
    return flat.view(entry.shape)


@dataclass(frozen=True, slots=True)
class _Piece:
    """`memory` is what is read into: the final memory, or a part of a buffer."""

    path: Path
    memory: torch.Tensor
    offset: int
    buffer: torch.Tensor | None
    final: torch.Tensor
    dtype: torch.dtype | None = None


def _read_piece(path: Path, memory: torch.Tensor, offset: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _read_exactly(fd, memory, offset)
    finally:
        os.close(fd)


def _read_exactly(fd: int, piece: torch.Tensor, offset: int) -> None:
    view = piece.numpy().data
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            raise refuse("a weights file shrank while it was read")
        done += count
