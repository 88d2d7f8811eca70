"""What an order to load or unload says: each field checked before anything is touched.

Supervisor; pure. Orders come from operators, from workers on behalf of HTTP clients,
and from the desired state that an earlier life wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ipc.errors import ClientError

Order = dict[str, Any]

_FIELDS = {
    "source": str,
    "dtype": str,
    "quant": str,
    "context": int,
    "devices": list,
    "pinned": bool,
    "priority": int,
}
# what the device's loader knows, which this process can't import
_VALUES = {
    "dtype": ("auto", "bfloat16", "float16", "float32"),
    "quant": ("auto", "none", "int8", "int4"),
}
_KINDS = {
    str: "a text",
    int: "a whole number",
    list: "a list of device names",
    bool: "true or false",
}


def model_id(args: Mapping[str, Any]) -> str:
    """Raises ClientError."""
    model = args.get("model_id")
    if not isinstance(model, str) or not model:
        raise ClientError("model_id is required", param="model_id")
    return model


def checked(args: Mapping[str, Any]) -> Order:
    """What it says about the load itself. Raises ClientError naming the field."""
    given = {}
    for name, kind in _FIELDS.items():
        value = args.get(name)
        if value is None:
            continue
        if type(value) is not kind or not _is_sensible(value):
            raise ClientError(f"{name} must be {_KINDS[kind]}", param=name)
        if name in _VALUES and value not in _VALUES[name]:
            allowed = ", ".join(_VALUES[name])
            text = f"{name} {value!r} is not one of {allowed}"
            raise ClientError(text, param=name)
        given[name] = value
    return given


def wants_to_wait(args: Mapping[str, Any]) -> bool:
    """Whether the answer comes after the outcome. Raises ClientError."""
    wait = args.get("wait")
    if wait is not None and not isinstance(wait, bool):
        raise ClientError("wait must be true or false", param="wait")
    return wait is not False


def _is_sensible(value: Any) -> bool:
    if isinstance(value, int):
        return value >= 0
    if isinstance(value, list):
        return all(isinstance(name, str) for name in value)
    return bool(value)
