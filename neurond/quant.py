"""In which form a model's linear layers are held: from what is asked and what is there.

Supervisor, to know the bytes before anything is touched, and device process, to make
them; pure, torch-free.

    asked   the folder has 4-bit blocks           any other folder
    auto    the blocks; head in 8 bits            as none
    none    dense, dequantised                    dense
    int8    8 bits, a scale per row; head too
    int4    4 bits in groups of `group_size`; head in 8 bits

What was asked for by name is all that is held; `auto` keeps a dense copy beside the
blocks on a CPU, because many rows are several times faster with it
(`options.keep_dense` says otherwise, either way). Invariant numerics hold one form, so
that a weight has one value.

Invariant: blocks that have no kernel are refused, unless it was said that they may be
dequantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ipc.errors import error_for
from neurond import converted
from neurond.converted import Marker

GROUP_SIZES = (32, 64, 128, 256)
BLOCK = 32


@dataclass(frozen=True, slots=True)
class Form:
    """`label` is what operators see; `kind` and `head` are those of `device.linear`."""

    label: str
    kind: str
    head: str
    group_size: int = 0
    keep_dense: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """What of the device and its engine matters."""

    on_cpu: bool
    dtype: str
    is_fast: bool = True


def choose(
    quant: str, options: Mapping[str, Any], marker: Marker | None, place: Place
) -> Form:
    """Raises load_failed: unknown quant or option, blocks without a kernel."""
    converted.check_quant(quant)
    if marker is not None:
        may = converted.may_dequantise(quant, options)
        converted.check(marker, may_dequantise=may)
    by_name = _keep_dense(options, False)
    match quant or "auto":
        case "int8":
            return Form("int8", "int8", "int8", 0, by_name)
        case "int4":
            return Form("int4", "int4", "int8", _group_size(options), by_name)
        case "auto" if marker is not None and _wants_blocks(marker, options, place):
            keep = _keep_dense(options, place.on_cpu and place.is_fast)
            return Form(marker.label, "blocks", "int8", BLOCK, keep)
        case _:
            return Form("none", "none", "none")


def _wants_blocks(marker: Marker, options: Mapping[str, Any], place: Place) -> bool:
    """The kernel takes bfloat16 rows."""
    able = place.dtype == "bfloat16"
    return able and marker.has_blocks and not options.get("dequantize")


def _keep_dense(options: Mapping[str, Any], default: bool) -> bool:
    told = options.get("keep_dense", default)
    if not isinstance(told, bool):
        raise error_for("load_failed", "options.keep_dense must be true or false")
    return told


def _group_size(options: Mapping[str, Any]) -> int:
    told = options.get("group_size", 64)
    if told not in GROUP_SIZES:
        allowed = ", ".join(str(size) for size in GROUP_SIZES)
        text = f"options.group_size {told!r} is not one of {allowed}"
        raise error_for("load_failed", text)
    return int(told)
