"""What the supervisor knows of one model."""

from __future__ import annotations

import pytest

from ipc.errors import CapacityError, HostError, from_wire
from neurond.config import Model
from neurond.modelrecord import ModelRecord, new_progress
from neurond.states import IllegalTransition, ModelEvent, ModelStatus
from tests.neurond.slotkit import loaded_message, loaded_record, running


def fresh() -> ModelRecord:
    return ModelRecord(Model("tiny", "fake", context=512, options={"load_ms": 1}))


def test_a_move_keeps_since_when_the_status_stays() -> None:
    record = fresh()
    record.since_s = 7.0
    record.move(ModelEvent.DEVICE_LOST)
    assert record.since_s == 7.0
    record.move(ModelEvent.LOAD)
    assert record.since_s > 7.0


def test_a_move_that_makes_no_sense_is_refused_and_changes_nothing() -> None:
    record = fresh()
    with pytest.raises(IllegalTransition):
        record.move(ModelEvent.CONVERT)
    assert record.status is ModelStatus.UNLOADED


@pytest.mark.parametrize("status", list(ModelStatus))
def test_a_model_is_wanted_while_it_is_there_or_comes(status: ModelStatus) -> None:
    record = fresh()
    record.status = status
    gone = {ModelStatus.UNLOADED, ModelStatus.UNLOADING, ModelStatus.FAILED}
    assert record.is_wanted == (status not in gone)


@running
async def test_a_load_forgets_the_last_outcome() -> None:
    record = fresh()
    record.fail(HostError("no", code="load_failed"))
    record.num_load_deaths = 2
    record.begin(new_progress())
    assert (record.error, record.reason, record.num_load_deaths) == (None, "", 0)
    assert record.is_busy


@running
async def test_who_waits_hears_of_success() -> None:
    record = fresh()
    done = record.begin(new_progress())
    record.succeed(loaded_message())
    await done
    assert not record.is_busy
    assert record.progress is None


@running
async def test_who_waits_hears_of_failure_and_it_stays_in_the_record() -> None:
    record = fresh()
    record.devices = ["fake-0"]
    done = record.begin(new_progress())
    record.fail(CapacityError("no room", code="insufficient_vram"))
    with pytest.raises(CapacityError, match="no room"):
        await done
    assert record.reason == "no room"
    assert record.devices == []
    assert record.progress is None


@running
async def test_an_outcome_that_comes_twice_is_told_once() -> None:
    record = fresh()
    done = record.begin(new_progress())
    record.end()
    record.end()
    record.fail(HostError("late"))
    await done


def test_an_order_changes_what_it_names_and_is_kept_as_it_was() -> None:
    record = fresh()
    record.respecify({"pinned": True, "devices": ["fake-0"]})
    assert record.ordered == {"pinned": True, "devices": ["fake-0"]}
    assert (record.spec.pinned, record.spec.context) == (True, 512)


def test_an_order_begins_from_the_configuration_not_from_the_order_before() -> None:
    record = fresh()
    source = record.spec.source
    record.respecify({"quant": "int4", "context": 64, "source": "/models/other"})
    record.respecify({"pinned": True})
    assert (record.spec.quant, record.spec.context) == ("auto", 512)
    assert record.spec.source == "/models/other" != source


def test_a_device_is_sent_what_the_model_is_to_be() -> None:
    record = fresh()
    record.folder = "/models/tiny"
    sent = record.load_message()
    assert (sent.model, sent.folder, sent.context) == ("tiny", "/models/tiny", 512)
    assert sent.options == {"load_ms": 1}
    assert sent.options is not record.spec.options


def test_an_error_travels_with_its_causes() -> None:
    record = loaded_record()
    assert record.error_wire() is None
    try:
        try:
            raise OSError("disk")
        except OSError as error:
            raise HostError("can't be read", code="load_failed") from error
    except HostError as error:
        record.fail(error)
    wire = record.error_wire()
    assert wire is not None
    assert wire[0] == "load_failed"
    assert from_wire(wire).chain == ("OSError: disk",)


def test_causes_that_were_told_are_kept_as_they_are() -> None:
    record = fresh()
    record.fail(HostError("no", code="load_failed", chain=("KeyError: 'x'",)))
    wire = record.error_wire()
    assert wire is not None
    assert wire[5] == ["KeyError: 'x'"]


def test_a_devices_next_life_is_told_what_a_load_found_out() -> None:
    record = loaded_record()
    record.succeed(told := loaded_message(known={"stamp": "s"}))
    assert "known" not in told.info  # it is no fact for others
    record.lost()
    again = record.load_on(2, again=True)
    assert (again.known, again.alone) == ({"stamp": "s"}, True)
    first = record.load_on(2)
    assert (first.known, first.alone) == ({}, False)


def test_a_model_that_does_not_come_back_takes_nothing_for_granted() -> None:
    record = loaded_record()
    record.succeed(loaded_message(known={"stamp": "s"}))
    record.lost()
    record.lost()
    assert record.known == {"stamp": "s"}  # whoever kills it, kills it again
    record.lost()
    assert record.known == {}


@running
async def test_a_new_order_forgets_what_was_known() -> None:
    record = loaded_record()
    record.succeed(loaded_message(known={"stamp": "s"}))
    record.begin(new_progress())
    assert record.known == {}
