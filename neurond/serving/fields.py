"""Reading fields of a client's JSON, one check each; every refusal names the field.

Pure; front end and gateway. `null` is the same as absent. A bool is never a number.

Invariant: whatever the value, the outcome is a value in range or a ClientError (T6).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ipc.errors import ClientError

Body = Mapping[str, Any]
_SHOWN_CHARS = 40


def shown(value: object) -> str:
    """The value as an error message may carry it."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"


def invalid(name: str, wanted: str, value: object) -> ClientError:
    return ClientError(f"{name} must be {wanted}, got {shown(value)}", param=name)


def number(body: Body, name: str, low: float, high: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    # NaN fails every comparison, so it is refused here too
    if type(value) not in (int, float) or not low <= value <= high:
        raise invalid(name, f"a number from {low:g} to {high:g}", value)
    return float(value)


def integer(body: Body, name: str, low: int, high: int | None = None) -> int | None:
    """An integer of at least `low`; `high` None leaves clamping to the caller."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or value < low or (high is not None and value > high):
        wanted = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise invalid(name, f"an integer {wanted}", value)
    return value


def flag(body: Body, name: str, *, default: bool = False) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not bool:
        raise invalid(name, "true or false", value)
    return value


def text(body: Body, name: str, *, max_chars: int) -> str | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not str or not 0 < len(value) <= max_chars:
        raise invalid(name, f"a string of 1 to {max_chars} characters", value)
    return value


def mapping(body: Body, name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if type(value) is not dict:
        raise invalid(name, "an object", value)
    return value


def refuse_unsupported(body: Body, harmless: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises ClientError for a field of `harmless` that asks for something.

    `harmless`: fields that would change the answer and are not supported, each with the
    values that ask for nothing.
    """
    for name in body.keys() & harmless.keys():
        value = body[name]
        if value is not None and value not in harmless[name]:
            raise ClientError(
                f"{name} is not supported for this model yet",
                code="unsupported_parameter",
                param=name,
            )
