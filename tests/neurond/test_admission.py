"""Which device takes a model, and what a refusal says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import CapacityError, ClientError
from neurond.admission import Room, allowed, place

GIB = 1 << 30


def test_the_device_with_the_fewest_models_is_taken() -> None:
    rooms = [Room("cpu-0", 9 * GIB, 2), Room("cpu-1", 3 * GIB, 1)]
    assert place("tiny", GIB, rooms) == "cpu-1"


def test_among_equals_the_one_with_most_room_is_taken() -> None:
    rooms = [Room("cpu-0", 3 * GIB, 1), Room("cpu-1", 9 * GIB, 1)]
    assert place("tiny", GIB, rooms) == "cpu-1"


def test_a_device_without_room_is_passed_over() -> None:
    rooms = [Room("cpu-0", GIB // 2, 0), Room("cpu-1", 9 * GIB, 7)]
    assert place("tiny", GIB, rooms) == "cpu-1"


def test_a_margin_stands_for_activations() -> None:
    exact, enough = Room("cpu-0", 1000, 0), Room("cpu-0", 1100, 0)
    with pytest.raises(CapacityError):
        place("tiny", 1000, [exact])
    assert place("tiny", 1000, [enough]) == "cpu-0"


def test_a_refusal_says_per_device_what_is_needed_and_free() -> None:
    rooms = [Room("cpu-0", GIB, 0), Room("cpu-1", GIB // 2, 0)]
    with pytest.raises(CapacityError) as caught:
        place("big", 10 * GIB, rooms)
    error = caught.value
    assert error.code == "insufficient_vram"
    assert error.message == (
        "model big needs 11.00 GiB; cpu-0 has 1.00 GiB free, cpu-1 has 0.50 GiB free"
    )
    assert [row["device"] for row in error.fields["devices"]] == ["cpu-0", "cpu-1"]
    assert error.fields["devices"][1] == {
        "device": "cpu-1",
        "needed_bytes": 11 * GIB,
        "free_bytes": GIB // 2,
    }


def test_without_any_device_the_refusal_says_so() -> None:
    with pytest.raises(CapacityError, match="no device is up"):
        place("tiny", 1, [])


@given(
    st.integers(0, 1 << 40),
    st.lists(st.tuples(st.integers(-GIB, 1 << 40), st.integers(0, 5)), max_size=6),
)
def test_whoever_is_chosen_has_room(
    needed_bytes: int, told: list[tuple[int, int]]
) -> None:
    rooms = [Room(f"cpu-{i}", free, models) for i, (free, models) in enumerate(told)]
    try:
        chosen = place("tiny", needed_bytes, rooms)
    except CapacityError:
        assert all(room.free_bytes < int(needed_bytes * 1.1) for room in rooms)
    else:
        free_bytes = {room.device: room.free_bytes for room in rooms}
        assert free_bytes[chosen] >= needed_bytes


def test_an_order_without_devices_may_use_all() -> None:
    assert allowed((), ("cpu-0", "cpu-1")) == ("cpu-0", "cpu-1")


def test_an_order_with_devices_may_use_those() -> None:
    assert allowed(("cpu-1",), ("cpu-0", "cpu-1")) == ("cpu-1",)


def test_an_unknown_device_is_refused_by_name() -> None:
    with pytest.raises(ClientError, match="there is no device gpu-7") as caught:
        allowed(("cpu-0", "gpu-7"), ("cpu-0",))
    assert caught.value.param == "devices"
