"""What stands beside the weights of a converted GGUF: its block types and its figures.

Supervisor, conversion and device processes; torch-free. `converted.json` is the last
thing that a conversion writes. A folder without one, or of another format, still loads
as plain safetensors; the node makes it again from its file.

Invariant: blocks that no kernel here computes are never blown up to full size unless
somebody says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ipc.errors import ServiceError, error_for

FORMAT = 2
MARKER = "converted.json"
BLOCKS_FILE = "blocks.safetensors"
KERNEL_TYPES = ("Q4_0", "Q4_1")
_PLAIN_TYPES = ("F64", "F32", "F16", "BF16")
QUANTS = ("auto", "none", "int8", "int4")


@dataclass(frozen=True, slots=True)
class Marker:
    """`types` counts the block types of the linear layers; sizes are of the whole file.

    `has_blocks`: every linear layer's blocks are kept, in BLOCKS_FILE.
    """

    stored_bytes: int
    dense_bytes: int
    types: Mapping[str, int] = field(default_factory=dict)
    has_blocks: bool = False
    format: int = FORMAT

    @property
    def label(self) -> str:
        """`q4_1`, `q4_0+q4_1`."""
        return "+".join(self.block_types).lower()

    @property
    def block_types(self) -> tuple[str, ...]:
        """Of the linear layers, plain numbers left out."""
        return tuple(sorted(kind for kind in self.types if kind not in _PLAIN_TYPES))

    @property
    def strange_types(self) -> tuple[str, ...]:
        """Block types that nothing here computes from."""
        known = KERNEL_TYPES if self.has_blocks else ()
        return tuple(kind for kind in self.block_types if kind not in known)


def read(folder: Path) -> Marker | None:
    """None where there is no marker, or one of another format."""
    try:
        told = json.loads((folder / MARKER).read_bytes())
        found = Marker(**told)
    except (OSError, ValueError, TypeError):
        return None
    return found if found.format == FORMAT else None


def write(folder: Path, marker: Marker) -> None:
    (folder / MARKER).write_text(json.dumps(asdict(marker)))


def may_dequantise(quant: str, options: Mapping[str, Any]) -> bool:
    """Somebody has said that the weights may leave their blocks."""
    return bool(options.get("dequantize")) or quant not in ("", "auto")


def check(marker: Marker, *, may_dequantise: bool) -> None:
    """Raises load_failed with both figures where no kernel computes the blocks."""
    if may_dequantise or not marker.strange_types:
        return
    raise _no_kernel(marker)


def check_quant(quant: str) -> None:
    """Raises load_failed naming the allowed ones."""
    if quant and quant not in QUANTS:
        allowed = ", ".join(QUANTS)
        raise error_for("load_failed", f"quant {quant!r} is not one of {allowed}")


def _no_kernel(marker: Marker) -> ServiceError:
    stored_bytes, dense_bytes = marker.stored_bytes, marker.dense_bytes
    return error_for(
        "load_failed",
        f"no kernel here computes {', '.join(marker.strange_types)} blocks: the file "
        f"holds {_size(stored_bytes)}, dequantised it would be {_size(dense_bytes)}; "
        "set options.dequantize = true, or quant to none, int8 or int4",
        fields={"stored_bytes": stored_bytes, "dequantised_bytes": dense_bytes},
    )


def _size(size_bytes: int) -> str:
    if size_bytes < 1 << 30:
        return f"{size_bytes / (1 << 20):.2f} MiB"
    return f"{size_bytes / (1 << 30):.2f} GiB"
