"""Which device takes a model: decided by bytes before anything is touched.

Supervisor; pure. `needed_bytes` is what the weights will hold; a margin stands for
activations and the first of the KV cache.

Invariant: a refusal says per device what is needed and what is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ipc.errors import CapacityError, ClientError

_MARGIN = 1.1


@dataclass(frozen=True, slots=True)
class Room:
    """A device as admission sees it; `free_bytes` without what is reserved."""

    device: str
    free_bytes: int
    num_models: int


def place(model: str, needed_bytes: int, rooms: Sequence[Room]) -> str:
    """The emptiest device that has room. Raises CapacityError insufficient_vram."""
    wanted = int(needed_bytes * _MARGIN)
    fitting = [room for room in rooms if room.free_bytes >= wanted]
    if not fitting:
        raise _no_room(model, wanted, rooms)
    best = min(fitting, key=lambda room: (room.num_models, -room.free_bytes))
    return best.device


def allowed(wanted: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The devices that a load may use. Raises ClientError naming an unknown one."""
    for device in wanted:
        if device not in known:
            raise ClientError(f"there is no device {device}", param="devices")
    return tuple(wanted or known)


def _no_room(model: str, wanted: int, rooms: Sequence[Room]) -> CapacityError:
    per_device = [
        {"device": r.device, "needed_bytes": wanted, "free_bytes": r.free_bytes}
        for r in rooms
    ]
    told = ", ".join(f"{r.device} has {_gib(r.free_bytes)} free" for r in rooms)
    return CapacityError(
        f"model {model} needs {_gib(wanted)}; {told or 'no device is up'}",
        code="insufficient_vram",
        fields={"devices": per_device},
    )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.2f} GiB"
