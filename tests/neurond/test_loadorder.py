"""What an order to load says, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from ipc.errors import ClientError
from neurond import loadorder

GOOD = {
    "source": "fake",
    "dtype": "auto",
    "quant": "none",
    "context": 0,
    "devices": ["cpu-0"],
    "pinned": False,
    "priority": 7,
}


def test_every_field_of_a_good_order_is_kept() -> None:
    assert loadorder.checked(GOOD) == GOOD


def test_fields_that_are_absent_or_null_say_nothing() -> None:
    assert loadorder.checked({"context": None, "wait": False, "unheard": 1}) == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", 3),
        ("source", ""),
        ("dtype", ["auto"]),
        ("dtype", "int3"),
        ("quant", "int2"),
        ("quant", {}),
        ("context", "512"),
        ("context", True),
        ("context", -1),
        ("context", 1.5),
        ("devices", "cpu-0"),
        ("devices", [1]),
        ("pinned", 1),
        ("priority", "high"),
        ("priority", -1),
    ],
)
def test_a_bad_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(ClientError, match=field) as caught:
        loadorder.checked({**GOOD, field: value})
    assert caught.value.param == field


@pytest.mark.parametrize("args", [{}, {"model_id": ""}, {"model_id": 3}])
def test_an_order_without_a_model_is_refused(args: dict[str, Any]) -> None:
    with pytest.raises(ClientError) as caught:
        loadorder.model_id(args)
    assert caught.value.param == "model_id"


def test_an_order_waits_unless_it_says_no() -> None:
    waits = [loadorder.wants_to_wait({"wait": w} if w != "" else {}) for w in WAITS]
    assert waits == [True, True, True, False]


WAITS: list[Any] = ["", None, True, False]


@pytest.mark.parametrize("wait", ["no", 0, 1])
def test_a_wait_that_is_no_boolean_is_named(wait: Any) -> None:
    with pytest.raises(ClientError) as caught:
        loadorder.wants_to_wait({"wait": wait})
    assert caught.value.param == "wait"
