"""Which numerics a model is served with.

Device process, torch-free, pure. `fast` computes every batch the quickest way;
`invariant` gives a request the same bits in any company.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ipc.errors import error_for
from neurond.device.settings import DeviceSettings

NUMERICS = ("fast", "invariant")


def is_invariant(options: Mapping[str, Any], settings: DeviceSettings) -> bool:
    """The model's own `options.numerics`, else the engine's. Raises load_failed."""
    told = options.get("numerics", settings.numerics)
    if told not in NUMERICS:
        text = f"options.numerics {told!r} is not one of {', '.join(NUMERICS)}"
        raise error_for("load_failed", text)
    return bool(told == "invariant")
