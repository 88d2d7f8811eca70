"""Loads and unloads, on devices that do as the test says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import CapacityError, ClientError, DeviceFault, HostError, ServiceError
from ipc.messages import LoadFailed, LoadProgress, Unloaded
from neurond.config import Model
from neurond.modelrecord import ModelRecord
from neurond.states import DeviceState, ModelStatus
from tests.neurond.lifekit import Node
from tests.neurond.slotkit import (
    GIB,
    Slot,
    loaded_message,
    page,
    running,
    until,
)


async def error_of(node: Node, record: ModelRecord) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await node.life.wait(record, 3.0)
    return caught.value


# ---- loads


@running
async def test_a_load_ends_when_its_device_has_the_model(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = await node.sent()
    assert node.status() is ModelStatus.LOADING
    node.says(loaded_message())
    await node.life.wait(record, 1.0)
    assert node.status() is ModelStatus.LOADED
    assert record.devices == ["fake-0"]
    assert node.kinds == ["model.loading", "model.loaded"]


@running
async def test_s15_whoever_asks_again_joins_the_load_under_way(tmp_path: Path) -> None:
    node = Node(tmp_path)
    first = node.life.load("tiny", {})
    second = node.life.load("tiny", {"context": 99})
    assert second is first
    await until(lambda: node.slot.loads)
    third = node.life.load("tiny", {})
    waits = [
        asyncio.create_task(node.life.wait(r, 3.0)) for r in (first, second, third)
    ]
    await asyncio.sleep(0)
    node.says(loaded_message())
    await asyncio.gather(*waits)
    assert node.slot.loads == ["tiny"]
    assert first.spec.context == 0


@running
async def test_s15_joiners_share_a_failure(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = await node.sent()
    waits = [asyncio.create_task(node.life.wait(record, 3.0)) for _ in range(3)]
    await asyncio.sleep(0)
    wire = HostError("missing keys: a, b", code="load_failed").to_wire()
    node.says(LoadFailed("tiny", wire))
    outcomes = await asyncio.gather(*waits, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["missing keys: a, b"] * 3


@running
async def test_a_model_that_is_loaded_is_not_loaded_again(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = await node.loaded()
    before = node.life.residency
    await node.life.wait(node.life.load("tiny", {}), 1.0)
    assert node.life.records["tiny"] is record
    assert node.life.residency == before
    assert node.slot.loads == ["tiny"]


@running
async def test_a_failure_is_kept_and_a_later_load_tries_again(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = await node.sent()
    node.says(LoadFailed("tiny", HostError("no", code="load_failed").to_wire()))
    assert (await error_of(node, record)).message == "no"
    assert (node.status(), record.reason) == (ModelStatus.FAILED, "no")
    assert (await error_of(node, record)).code == "load_failed"

    await node.loaded()
    assert node.status() is ModelStatus.LOADED
    assert (record.error, record.reason) == (None, "")


@running
async def test_a_failed_load_harms_no_other(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.loaded("other")
    await node.sent("tiny")
    node.says(LoadFailed("tiny", HostError("no", code="load_failed").to_wire()))
    assert node.status("other") is ModelStatus.LOADED


@running
async def test_a_source_that_is_not_there_fails_with_its_reason(tmp_path: Path) -> None:
    node = Node(tmp_path)
    error = await error_of(node, node.life.load("lost", {}))
    assert "no model folder" in error.message
    failed = dict(node.noted)["model.load_failed"]
    assert failed["code"] == "CX-MODEL-SOURCE"
    assert failed["cause"] == "source: /nowhere"


@running
async def test_files_that_cannot_be_read_fail_with_the_cause(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = node.life.load("long", {"source": "/" + "x" * 5000})
    error = await error_of(node, record)
    assert error.code == "load_failed"
    assert "OSError" in dict(node.noted)["model.load_failed"]["cause"]


@running
async def test_a_model_that_fits_nowhere_is_refused_by_bytes(tmp_path: Path) -> None:
    node = Node(tmp_path)
    error = await error_of(node, node.life.load("huge", {}))
    assert isinstance(error, CapacityError)
    assert error.code == "insufficient_vram"
    assert node.slot.loads == []


@running
async def test_what_is_being_loaded_is_counted_as_taken(tmp_path: Path) -> None:
    node = Node(tmp_path, Slot("fake-0", 3 * GIB))
    for model in ("tiny", "other"):
        options = {"memory_bytes": 2 * GIB}
        spec = Model(model, "fake", options=options)
        node.life.records[model] = ModelRecord(spec)
    await node.sent("tiny")
    error = await error_of(node, node.life.load("other", {}))
    assert error.code == "insufficient_vram"
    assert error.fields["devices"][0]["free_bytes"] == GIB


@running
async def test_an_order_may_name_its_device(tmp_path: Path) -> None:
    node = Node(tmp_path, Slot("fake-0"), Slot("fake-1"))
    record = await node.sent(devices=["fake-1"])
    assert record.devices == ["fake-1"]


@pytest.mark.parametrize(
    ("model", "given", "code"),
    [
        ("unheard", {}, "model_not_found"),
        ("../up", {"source": "fake"}, "invalid_request_error"),
        ("new", {"source": "fake", "devices": ["gpu-9"]}, "invalid_request_error"),
        ("tiny", {"context": 9, "devices": ["gpu-9"]}, "invalid_request_error"),
    ],
)
def test_a_refused_order_leaves_everything_as_it_was(
    model: str, given: dict[str, Any], code: str, tmp_path: Path
) -> None:
    @running
    async def check() -> None:
        node = Node(tmp_path)
        known = dict(node.life.records)
        with pytest.raises(ClientError) as caught:
            node.life.load(model, given)
        assert caught.value.code == code
        assert node.life.records == known
        assert node.life.records["tiny"].spec == Model("tiny", "fake")
        assert (node.life.residency, node.noted) == (0, [])

    check()


@running
async def test_a_load_waits_for_a_device_that_comes_up(tmp_path: Path) -> None:
    slot = Slot()
    slot.state = DeviceState.DYING
    node = Node(tmp_path, slot)
    node.life.load("tiny", {})
    await asyncio.sleep(0.12)
    assert node.status() is ModelStatus.LOADING
    slot.state = DeviceState.READY
    await until(lambda: slot.loads)


@running
async def test_a_device_that_never_comes_up_ends_the_load(tmp_path: Path) -> None:
    slot = Slot()
    slot.state = DeviceState.STARTING
    node = Node(tmp_path, slot, deadline_s=0.1)
    error = await error_of(node, node.life.load("tiny", {}))
    assert error.message == "no device came up in time"


@running
async def test_without_a_device_left_a_load_fails_at_once(tmp_path: Path) -> None:
    slot = Slot()
    slot.state = DeviceState.FAILED
    node = Node(tmp_path, slot)
    error = await error_of(node, node.life.load("tiny", {}))
    assert isinstance(error, DeviceFault)


@running
async def test_a_wait_has_a_deadline_and_leaves_the_load_alone(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = await node.sent()
    with pytest.raises(TimeoutError):
        await node.life.wait(record, 0.01)
    assert record.is_busy
    node.says(loaded_message())
    await node.life.wait(record, 1.0)


@running
async def test_nobody_waits_for_what_was_never_begun(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.life.wait(node.life.records["tiny"], 0.01)


# ---- conversion


def gguf(folder: Path) -> str:
    path = folder / "tiny.gguf"
    path.write_bytes(b"GGUF")
    return str(path)


@running
async def test_a_gguf_is_converted_first_and_shows_how_far(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = node.life.load("new", {"source": gguf(tmp_path)})
    await until(lambda: node.conversions.asked)
    assert node.status("new") is ModelStatus.CONVERTING
    node.conversions.progress(1, 2)
    assert record.progress is not None
    assert record.progress.position(0.0).percent == 30.0
    node.conversions.asked[0].mkdir(parents=True)
    (node.conversions.asked[0] / "tokenizer.json").write_text("{}")
    node.conversions.end.set_result(None)
    await until(lambda: node.slot.loads)
    assert node.status("new") is ModelStatus.LOADING
    assert record.folder == str(node.conversions.asked[0])


@running
async def test_a_conversion_that_fails_is_a_failed_load(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = node.life.load("new", {"source": gguf(tmp_path)})
    await until(lambda: node.conversions.asked)
    node.conversions.end.set_exception(HostError("bad file", code="load_failed"))
    assert (await error_of(node, record)).message == "bad file"


@running
async def test_a_conversion_that_takes_too_long_is_a_failed_load(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path, deadline_s=0.1)
    record = node.life.load("new", {"source": gguf(tmp_path)})
    error = await error_of(node, record)
    assert "in time" in error.message


@running
async def test_an_unload_during_a_conversion_ends_both(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = node.life.load("new", {"source": gguf(tmp_path)})
    await until(lambda: node.conversions.asked)
    load = record.done
    assert load is not None
    await node.life.wait(node.life.unload("new"), 1.0)
    assert node.status("new") is ModelStatus.UNLOADED
    assert isinstance(load.exception(), ClientError)
    node.conversions.end.set_result(None)
    await asyncio.sleep(0.05)
    assert node.slot.loads == []
    assert node.status("new") is ModelStatus.UNLOADED


# ---- unloads


@running
async def test_an_unload_waits_for_the_device(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = await node.loaded()
    node.life.unload("tiny")
    await until(lambda: node.slot.unloads)
    assert record.is_busy
    node.says(Unloaded("tiny", GIB))
    await node.life.wait(record, 1.0)
    assert (node.status(), record.devices, record.loaded) == (
        ModelStatus.UNLOADED,
        [],
        None,
    )
    assert node.kinds[-2:] == ["model.unloading", "model.unloaded"]


@running
async def test_requests_that_run_end_before_the_unload(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.loaded()
    node.slot.page = page(lambda w: w.model(0, "tiny", 1, 0, 0.0))
    node.life.unload("tiny")
    await asyncio.sleep(0.12)
    assert node.slot.unloads == []
    node.slot.page = page(lambda w: w.model(0, "tiny", 0, 0, 0.0))
    await until(lambda: node.slot.unloads)


@running
async def test_requests_that_never_end_are_cut_at_the_deadline(tmp_path: Path) -> None:
    node = Node(tmp_path, deadline_s=0.1)
    await node.loaded()
    node.slot.page = page(lambda w: w.model(0, "tiny", 0, 1, 0.0))
    node.life.unload("tiny")
    await until(lambda: node.slot.unloads)


@running
async def test_an_unload_overtakes_a_load(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = await node.sent()
    load = record.done
    assert load is not None
    node.life.unload("tiny")
    await until(lambda: node.slot.unloads)
    node.says(loaded_message())
    assert node.status() is ModelStatus.UNLOADING
    node.says(Unloaded("tiny", GIB))
    assert node.status() is ModelStatus.UNLOADED
    assert isinstance(load.exception(), ClientError)


@running
async def test_a_load_after_an_unload_after_a_load_is_the_only_one(
    tmp_path: Path,
) -> None:
    slot = Slot()
    slot.state = DeviceState.STARTING
    node = Node(tmp_path, slot)
    node.life.load("tiny", {})
    await asyncio.sleep(0.06)
    await node.life.wait(node.life.unload("tiny"), 1.0)
    node.life.load("tiny", {})
    slot.state = DeviceState.READY
    await until(lambda: slot.loads)
    await asyncio.sleep(0.15)
    assert slot.loads == ["tiny"]


@running
async def test_a_load_is_refused_while_the_model_is_being_unloaded(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path)
    await node.loaded()
    node.life.unload("tiny")
    with pytest.raises(ClientError) as caught:
        node.life.load("tiny", {})
    assert caught.value.code == "version_conflict"


@running
async def test_what_is_not_loaded_is_unloaded_already(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.life.wait(node.life.unload("tiny"), 0.1)
    assert (node.life.residency, node.noted) == (0, [])
    with pytest.raises(ClientError) as caught:
        node.life.unload("unheard")
    assert caught.value.code == "model_not_found"


@running
async def test_an_unload_takes_a_failure_away(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = node.life.load("lost", {})
    await error_of(node, record)
    before = node.life.residency
    await node.life.wait(node.life.unload("lost"), 0.1)
    assert (record.error, record.reason) == (None, "")
    assert node.status("lost") is ModelStatus.UNLOADED
    assert node.life.residency == before + 1


@running
async def test_an_unload_of_what_its_device_lost_ends_at_once(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = await node.loaded()
    node.dies()
    node.life.unload("tiny")
    await node.life.wait(record, 1.0)
    assert node.status() is ModelStatus.UNLOADED
    node.comes_back()
    assert node.slot.loads == ["tiny"]
    assert node.slot.is_up


# ---- devices that die


@running
async def test_a_loaded_model_comes_back_with_its_device(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = await node.loaded()
    node.dies()
    assert node.status() is ModelStatus.RECOVERING
    assert (record.reason, record.loaded) == ("killed by SIGKILL", None)
    node.comes_back()
    assert node.slot.loads == ["tiny", "tiny"]
    assert not node.slot.is_up
    node.says(loaded_message())
    assert node.status() is ModelStatus.LOADED
    assert record.reason == ""


@running
async def test_a_device_serves_when_all_of_its_models_are_back(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.loaded("tiny")
    await node.loaded("other")
    node.dies()
    node.comes_back()
    node.says(loaded_message("tiny"))
    assert not node.slot.is_up
    node.says(loaded_message("other"))
    assert node.slot.is_up


@running
async def test_a_model_that_does_not_come_back_holds_up_nobody(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.loaded("tiny")
    await node.loaded("other")
    node.dies()
    node.comes_back()
    node.says(loaded_message("tiny"))
    node.says(LoadFailed("other", HostError("no", code="load_failed").to_wire()))
    assert node.slot.is_up
    assert node.status("other") is ModelStatus.FAILED


@running
async def test_a_device_without_models_serves_at_its_hello(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.comes_back()
    assert node.slot.is_up


@running
async def test_a_load_goes_on_after_one_death(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = await node.sent()
    node.dies()
    assert node.status() is ModelStatus.LOADING
    node.comes_back()
    node.says(loaded_message())
    await node.life.wait(record, 1.0)


@running
async def test_a_model_that_kills_its_device_twice_is_given_up(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = await node.sent()
    node.dies()
    node.comes_back()
    node.dies()
    error = await error_of(node, record)
    assert "died twice" in error.message
    assert error.chain == ("killed by SIGKILL",)
    node.comes_back()
    assert node.slot.loads == ["tiny", "tiny"]
    assert node.slot.is_up


@running
async def test_a_new_load_counts_deaths_anew(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = await node.sent()
    for _ in range(2):
        node.dies()
        node.comes_back()
    assert node.status() is ModelStatus.FAILED
    node.slot.state = DeviceState.READY
    await node.sent()
    node.dies()
    assert record.status is ModelStatus.LOADING


@running
async def test_what_was_being_unloaded_is_gone_with_its_device(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = await node.loaded()
    node.slot.page = page(lambda w: w.model(0, "tiny", 1, 0, 0.0))
    node.life.unload("tiny")
    await asyncio.sleep(0)
    node.dies()
    await node.life.wait(record, 1.0)
    assert (node.status(), record.reason) == (ModelStatus.UNLOADED, "")
    assert node.kinds[-1] == "model.unloaded"


@running
async def test_an_unload_that_waited_when_its_device_died_touches_no_later_load(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path)
    await node.loaded()
    node.slot.page = page(lambda w: w.model(0, "tiny", 1, 0, 0.0))
    node.life.unload("tiny")
    await asyncio.sleep(0)
    node.dies()
    node.slot.page = None
    node.comes_back()
    await node.loaded()
    await asyncio.sleep(0.15)
    assert node.slot.unloads == []
    assert node.status() is ModelStatus.LOADED


@running
async def test_models_of_a_device_that_is_taken_out_move_to_another(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path, Slot("fake-0"), Slot("fake-1"))
    record = await node.loaded()
    node.dies()
    node.is_taken_out()
    await until(lambda: node.slots[1].loads)
    assert record.devices == ["fake-1"]
    node.says(loaded_message(), node.slots[1])
    assert node.status() is ModelStatus.LOADED


@running
async def test_models_of_a_device_that_cannot_be_killed_recover_elsewhere(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path, Slot("fake-0"), Slot("fake-1"))
    record = await node.loaded()
    node.is_taken_out()
    assert node.status() is ModelStatus.RECOVERING
    assert record.loaded is None
    await until(lambda: node.slots[1].loads)


@running
async def test_an_unload_on_a_device_that_is_taken_out_is_done(tmp_path: Path) -> None:
    node = Node(tmp_path, Slot("fake-0"), Slot("fake-1"))
    record = await node.loaded()
    node.life.unload("tiny")
    node.is_taken_out()
    await node.life.wait(record, 1.0)
    assert node.status() is ModelStatus.UNLOADED
    await asyncio.sleep(0.05)
    assert node.slots[1].loads == []


@running
async def test_without_another_device_they_fail_until_one_is_up(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.loaded()
    node.dies()
    node.is_taken_out()
    record = node.life.records["tiny"]
    assert record.status is ModelStatus.FAILED
    assert record.error is not None
    assert record.error.code == "device_failed"
    node.comes_back()
    await until(lambda: node.slot.loads == ["tiny", "tiny"])


# ---- residency and the rest


@running
async def test_residency_moves_when_a_load_or_unload_begins_or_ends(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path)
    seen = [node.life.residency]
    await node.sent()
    seen.append(node.life.residency)
    node.says(LoadProgress("tiny", "weights", 1, 2))
    assert node.life.residency == seen[-1]
    node.says(loaded_message())
    seen.append(node.life.residency)
    node.life.unload("tiny")
    seen.append(node.life.residency)
    await until(lambda: node.slot.unloads)
    node.says(Unloaded("tiny", GIB))
    seen.append(node.life.residency)
    assert seen == [0, 1, 2, 3, 4]


@running
async def test_a_device_without_models_moves_no_residency(tmp_path: Path) -> None:
    node = Node(tmp_path, Slot("fake-0"), Slot("fake-1"))
    await node.loaded(devices=["fake-0"])
    before = node.life.residency
    node.dies(node.slots[1])
    node.comes_back(node.slots[1])
    assert node.life.residency == before


@running
async def test_messages_of_models_that_are_gone_change_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path)
    wire = HostError("late", code="load_failed").to_wire()
    for model in ("unheard", "tiny"):
        node.says(LoadProgress(model, "weights", 1, 2))
        node.says(LoadFailed(model, wire))
        node.says(Unloaded(model, GIB))
    node.says(loaded_message("unheard"))
    assert (node.life.residency, node.noted) == (0, [])


@running
async def test_a_stop_leaves_no_work_behind(tmp_path: Path) -> None:
    slot = Slot()
    slot.state = DeviceState.STARTING
    node = Node(tmp_path, slot)
    node.life.load("tiny", {})
    await asyncio.sleep(0.01)
    await node.life.stop()
    assert len(asyncio.all_tasks()) == 1
