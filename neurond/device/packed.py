"""Packed weights kept on disk, so that a model is not quantised anew at each load.

Device process. One safetensors file per model and quantisation:

    header: __metadata__ {stamp, sum.<tensor>…} │ <layer>/<part of its state> …

A shelf that isn't whole leaves out the dense weights, which the checkpoint has as well.

The stamp says what the file was made from and for: our format, the processor's packed
layout (torch's version is in it), the plan, and the checkpoint's files with their sizes
and times. A file with another stamp, or a tensor whose checksum (blake2b) is wrong, is
not used: the load goes on from the checkpoint and writes the file anew. Sums that were
right in an earlier life of the device are not computed again for the same file.

Invariants: a file appears whole or not at all (written beside, synced, renamed); a full
disk costs the cache, never the load.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Listing
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import safe_open

from ipc.errors import ServiceError
from neurond.device import weights
from neurond.device.weights import Entry

_FORMAT = 1
_SUM_BYTES = 16
_SEPARATOR = "/"
_NAMES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}
State = dict[str, torch.Tensor]


class Shelf:
    """One model's file. Without a path nothing is kept.

    `notes` are lines for the journal. `identity` names a file that gave everything, or
    was written; `trusted` is that of an earlier load.
    """

    def __init__(
        self,
        path: Path | None,
        stamp: str,
        *,
        is_whole: bool = True,
        trusted: Listing[int] = (),
    ) -> None:
        self.notes: list[str] = []
        self.is_whole = is_whole
        self.identity: list[int] = []
        self._trusted = list(trusted)
        self._path = path
        self._stamp = stamp
        self._entries: dict[str, list[Entry]] = {}
        self._sums: dict[str, str] = {}
        self._made: dict[str, Callable[[], State]] = {}
        self._is_stale = False
        if path is not None and path.exists():
            self._open(path)

    def take(self, layer: str) -> State | None:
        """None where it has to be packed. Blocks while it reads."""
        entries = self._entries.get(layer)
        if entries is None:
            return None
        state = {entry.name: weights.fetch(entry) for entry in entries}
        if self.identity != self._trusted and not self._is_right(state):
            self._forget("is damaged")
            return None
        cut = len(layer) + len(_SEPARATOR)
        return {name[cut:]: tensor for name, tensor in state.items()}

    def put(self, layer: str, state: Callable[[], State], *, fresh: bool) -> None:
        """What is held, for `write`. `fresh`: it was packed, not taken."""
        if self._path is not None:
            self._made[layer] = state
            self._is_stale = self._is_stale or fresh

    def write(self) -> None:
        """Blocks. A file that gave everything is not written again."""
        if self._path is None or not self._is_stale:
            return
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                for part in self._serialised():
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
            self.identity = _identity(self._path)
        except OSError as error:
            self.notes.append(f"packed weights are not kept: {error.strerror}")
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            self._made.clear()

    def _open(self, path: Path) -> None:
        try:
            entries = weights.read_header(path)
            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
        except (ServiceError, OSError, RuntimeError, ValueError):
            self._forget("is damaged")
            return
        sums = {n[4:]: sum_ for n, sum_ in told.items() if n.startswith("sum.")}
        if told.get("stamp") != self._stamp or any(e.name not in sums for e in entries):
            self._forget("was made for something else")
            return
        self._sums = sums
        self.identity = _identity(path)
        for entry in entries:
            layer = entry.name.rpartition(_SEPARATOR)[0]
            self._entries.setdefault(layer, []).append(entry)

    def _is_right(self, state: State) -> bool:
        return all(_sum(tensor) == self._sums[name] for name, tensor in state.items())

    def _forget(self, why: str) -> None:
        self._entries.clear()
        self.identity = []
        name = self._path.name if self._path else ""
        self.notes.append(f"the cache of packed weights {name} {why}; it is made anew")

    def _serialised(self) -> Iterator[bytes | memoryview]:
        """A safetensors file's parts. The state of one layer at a time is copied."""
        header: dict[str, object] = {}
        told = {"stamp": self._stamp}
        end = 0
        for name, tensor in self._tensors():
            begin, end = end, end + tensor.numel() * tensor.element_size()
            header[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
            told[f"sum.{name}"] = _sum(tensor)
        raw = json.dumps({"__metadata__": told, **header}).encode()
        raw += b" " * (-len(raw) % 8)
        yield struct.pack("<Q", len(raw)) + raw
        for _name, tensor in self._tensors():
            yield _bytes(tensor)

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for layer, state in self._made.items():
            for name, tensor in state().items():
                yield f"{layer}{_SEPARATOR}{name}", tensor.cpu().contiguous()


def stamp(folder: Path, *what: str) -> str:
    """Of what packed weights are made from and for."""
    files = [
        (path.name, (found := path.stat()).st_size, found.st_mtime_ns)
        for path in sorted(folder.glob("*.safetensors"))
    ]
    return hashlib.blake2b(repr((_FORMAT, what, files)).encode()).hexdigest()[:32]


def _identity(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns]


def _sum(tensor: torch.Tensor) -> str:
    return hashlib.blake2b(_bytes(tensor), digest_size=_SUM_BYTES).hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
