"""What the host's CPU can do for a product of matrices.

Device process. Packed weights are laid out for it: `layout` names vectors, matrix units
and torch's version, and a cache of packed weights must not cross it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Processor:
    """What a CPU's kernels can do. `matrix_units`: AMX."""

    vectors: bool
    bfloat16: bool
    matrix_units: bool
    layout: str


def this_processor() -> Processor:
    capability = torch.backends.cpu.get_cpu_capability().lower()
    has_onednn = torch.backends.mkldnn.is_available()
    supported = has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    bfloat16 = bool(supported and capability == "avx512")
    matrix_units = bfloat16 and torch.cpu._is_amx_tile_supported()
    units = "-amx" * matrix_units or "-bf16" * bfloat16
    return Processor(
        vectors=capability in ("avx2", "avx512"),
        bfloat16=bfloat16,
        matrix_units=matrix_units,
        layout=f"{capability}{units}-{torch.__version__}",
    )
