"""Faults on order: what is sent, to whom, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from ipc.errors import ServiceError
from ipc.messages import Inject
from neurond.device.injection import KINDS
from neurond.deviceslot import DeviceSlot
from neurond.injecting import Injector
from neurond.states import DeviceState
from neurond.xids import Sighting
from tests.neurond.slotkit import Slot, as_slots


def injector(*slots: Slot, is_allowed: bool = True) -> Injector:
    return Injector(lambda: as_slots(*slots), is_allowed=is_allowed)


def code_of(made: Injector, **args: Any) -> tuple[str, str | None]:
    with pytest.raises(ServiceError) as caught:
        made.inject(args)
    return caught.value.code, caught.value.param


def test_nothing_is_simulated_where_it_is_not_configured() -> None:
    slot = Slot()
    made = injector(slot, is_allowed=False)
    refused = code_of(made, device="fake-0", kind="segv")
    assert refused == ("insufficient_permissions", None)
    assert slot.sent == []
    assert made.faults()["injection"] is False


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"wrong_result"}))
def test_a_device_is_sent_each_kind_that_is_listed(kind: str) -> None:
    slot = Slot()
    made = injector(slot)
    args = {"device": "fake-0", "kind": kind, "at_step": 3, "request": 9, "times": 2}
    assert made.inject(args) == {"device": "fake-0", "generation": 3, "kind": kind}
    assert slot.sent == [Inject(kind, 3, 9, 2)]
    assert kind in [row["kind"] for row in made.faults()["kinds"]]


def test_what_is_not_said_is_the_next_step_of_anyone_once() -> None:
    slot = Slot()
    injector(slot).inject({"device": "fake-0", "kind": "segv"})
    assert slot.sent == [Inject("segv", 1, 0, 1)]


def test_s19_a_wrong_result_is_of_the_next_process() -> None:
    slot = Slot()
    made = injector(slot)
    made.inject({"device": "fake-0", "kind": "wrong_result", "times": 2})
    assert slot.sent == []
    (device,) = as_slots(slot)
    made.before_reload(device)
    assert slot.sent == [Inject("wrong_result", times=2)]
    made.before_reload(device)
    assert len(slot.sent) == 1


def test_an_xid_goes_where_the_drivers_word_goes() -> None:
    slot = Slot()
    made = injector(slot)
    seen: list[tuple[str, int]] = []

    def saw(device: DeviceSlot, sighting: Sighting) -> None:
        seen.append((device.name, sighting.xid))

    made.on_xid = saw
    made.inject({"device": "fake-0", "kind": "xid:79"})
    assert seen == [("fake-0", 79)]
    assert slot.sent == []


@pytest.mark.parametrize(
    ("args", "param"),
    [
        ({"device": "fake-9"}, "device"),
        ({"kind": "coffee"}, "kind"),
        ({"kind": ""}, "kind"),
        ({"kind": "xid:"}, "kind"),
        ({"kind": "xid:0"}, "kind"),
        ({"kind": "xid:-3"}, "kind"),
        ({"kind": "xid:" + "9" * 5000}, "kind"),
        ({"at_step": -1}, "at_step"),
        ({"at_step": True}, "at_step"),
        ({"at_step": "3"}, "at_step"),
        ({"request": 1 << 64}, "request"),
        ({"times": 1.5}, "times"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_field(
    args: dict[str, Any], param: str
) -> None:
    slot = Slot()
    known = {"device": "fake-0", "kind": "segv", **args}
    assert code_of(injector(slot), **known) == ("invalid_request_error", param)
    assert slot.sent == []


def test_a_device_that_is_away_has_no_step_to_fail_in() -> None:
    slot = Slot()
    slot.state, slot.has_said_hello = DeviceState.BACKOFF, False
    assert code_of(injector(slot), device="fake-0", kind="segv")[0] == "device_fault"
