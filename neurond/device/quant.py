"""The plans for a model's linear layers that carry out the form chosen for it.

Device process; pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from neurond.device.linear import LinearPlan
from neurond.quant import Form


@dataclass(frozen=True, slots=True)
class Quant:
    """A plan of None leaves a layer as transformers made it; `fuses`: whole layers may
    be replaced by ones that are equal up to rounding."""

    form: Form
    linear: LinearPlan | None
    head: LinearPlan | None
    fuses: bool = False


PLAIN = Quant(Form("none", "none", "none"), None, None)


def plans(form: Form, dtype: torch.dtype, device: torch.device, *, fast: bool) -> Quant:
    fuses = fast and device.type == "cpu"
    if form.kind == "none":
        # dense bfloat16 has a faster layout on CPU; elsewhere nothing is gained
        gains = device.type == "cpu" and dtype == torch.bfloat16
        plan = LinearPlan("none", device, dtype) if gains else None
        return Quant(form, plan, plan, fuses)
    # one form for any number of rows, or their rounding would tell how many they were
    keep_dense = form.keep_dense and fast
    plan = LinearPlan(form.kind, device, dtype, keep_dense, form.group_size)
    head = replace(plan, kind=form.head, scores=True)
    return Quant(form, plan, head, fuses)
