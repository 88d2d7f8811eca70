"""How a node is, in one word and in lines for whoever must act: pure.

Supervisor; cut from the facts of devices and models.

Invariant: whatever is away, failed or on its way back has a line, with what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ipc.errors import TABLE
from neurond.states import DeviceState, ModelStatus

_AWAY = (DeviceState.DYING, DeviceState.BACKOFF, DeviceState.FAILED)
_NEVER_UP = (DeviceState.ABSENT, DeviceState.STARTING)

Facts = Mapping[str, Any]


def state_of(
    devices: Sequence[Facts],
    models: Sequence[Facts],
    cuda_problem: str,
    is_stopping: bool,
) -> str:
    if is_stopping:
        return "stopping"
    if all(device["state"] in _NEVER_UP for device in devices):
        return "starting" if devices else "impaired"
    is_hurt = any(device["state"] in _AWAY for device in devices)
    has_failed = any(model["status"] == ModelStatus.FAILED for model in models)
    return "impaired" if is_hurt or has_failed or cuda_problem else "ready"


def lines_of(
    devices: Sequence[Facts], models: Sequence[Facts], cuda_problem: str
) -> list[dict[str, str]]:
    """One line per thing that an operator may want to act on, with the next command."""
    lines = []
    if cuda_problem:
        lines.append(_line("error", "cuda_unavailable", cuda_problem))
    for device in devices:
        if _is_away(device):
            lines.append(_of_device(device))
    for model in models:
        if model["status"] == ModelStatus.FAILED:
            wire = model["error"]
            text = f"model {model['id']} could not be loaded: {model['reason']}"
            lines.append(_line("warning", wire[0] if wire else "load_failed", text))
    return lines


def _is_away(device: Facts) -> bool:
    """One that starts is, where it says why it had to."""
    starts_anew = device["state"] == DeviceState.STARTING and device["reason"]
    return device["state"] in _AWAY or bool(starts_anew)


def _of_device(device: Facts) -> dict[str, str]:
    text = f"device {device['device']} is {device['state']}: {device['reason']}"
    if device["state"] != DeviceState.FAILED:
        return _line("warning", "device_fault", text)
    line = _line("error", "device_failed", text)
    return {**line, "next": device["cure"]} if device["cure"] else line


def _line(level: str, code: str, text: str) -> dict[str, str]:
    row = TABLE[code]
    return {"level": level, "code": row.ref, "text": text, "next": row.next_command}
