"""The node's facts: every field, every state, every line for an operator."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from ipc.errors import TABLE, HostError
from ipc.status import Phase, StatusWriter
from neurond import facts
from neurond.config import Model
from neurond.discovery import HostFacts
from neurond.modelrecord import ModelRecord
from neurond.stages import PLAIN, Progress
from neurond.states import DeviceState, ModelEvent, ModelStatus
from tests.neurond.slotkit import (
    GIB,
    Slot,
    as_slots,
    loaded_message,
    loaded_record,
    page,
)

TOP = """schema node boot_id residency time_s started_s version state health listen host
    devices models quarantined"""
DEVICE = """device kind name uuid pid state reason since_s generation phase
    memory_total_bytes memory_free_bytes memory_foreign_bytes models running waiting
    emitted_tokens_total counters deaths_total last_fault suspect reset_wanted xids
    faults_total suspects_total convicted_total recovery cure"""
MODEL = """id status stage percent eta_s reason since_s devices servable context dtype
    context_limited_by rates kv quant digest resident_bytes pinned priority last_used_s
    running waiting
    load_seconds architecture kind dimensions matryoshka capabilities source
    folder error"""


def own(**changes: Any) -> facts.Own:
    given: dict[str, Any] = {
        "node": "node-1",
        "boot_id": "b00t",
        "residency": 7,
        "started_s": 1.0,
        "is_stopping": False,
        "listen": {"http": "127.0.0.1:1"},
        "host": HostFacts(8, 16 * GIB, 4 * GIB, "host-1"),
        "cuda_problem": "",
        "foreign_bytes": {},
    }
    return facts.Own(**(given | changes))


def told(slots: list[Slot], *records: ModelRecord, **changes: Any) -> dict[str, Any]:
    return facts.of_node(own(**changes), as_slots(*slots), records)


def slot_in(state: DeviceState, name: str = "fake-0", reason: str = "") -> Slot:
    slot = Slot(name)
    slot.state, slot.reason = state, reason
    return slot


def failed_record(code: str = "load_failed") -> ModelRecord:
    record = ModelRecord(Model("bad", "/srv/bad"))
    record.move(ModelEvent.LOAD)
    record.move(ModelEvent.FAILED)
    record.fail(HostError("no weights", code=code))
    return record


def test_every_field_is_there_and_no_other() -> None:
    document = told([Slot()], loaded_record())
    assert set(document) == set(TOP.split())
    assert set(document["devices"][0]) == set(DEVICE.split())
    assert set(document["models"][0]) == set(MODEL.split())


def test_the_document_is_plain_json() -> None:
    document = told([Slot()], loaded_record(), failed_record())
    assert json.loads(json.dumps(document)) == document


def test_the_head_says_whose_facts_these_are() -> None:
    document = told([Slot()])
    assert document["schema"] == 1
    assert document["node"] == "node-1"
    assert document["listen"] == {"http": "127.0.0.1:1"}
    assert document["host"] == {
        "cores": 8,
        "memory_total_bytes": 16 * GIB,
        "memory_free_bytes": 4 * GIB,
        "hostname": "host-1",
    }
    assert abs(document["time_s"] - time.time()) < 5
    assert facts.etag(document) == "b00t.7"


def test_versions_are_told_and_what_is_not_installed_is_null() -> None:
    versions = facts.versions()
    assert set(versions) == {"cortex", "python", "torch", "transformers", "protocol"}
    assert isinstance(versions["protocol"], int)
    assert facts._installed("no-such-package-anywhere") is None


def test_a_device_shows_what_its_page_says() -> None:
    def write(writer: StatusWriter) -> None:
        writer.arm(Phase.DECODE, time.monotonic() + 5, [1, 2])
        writer.set("running", 2)
        writer.set("waiting", 1)
        writer.add("emitted_tokens_total", 9)

    slot = Slot()
    slot.page = page(write)
    slot.history.odometer.fold(page(lambda w: w.add("emitted_tokens_total", 100)))
    device = told([slot], foreign_bytes={"uuid-fake-0": 55})["devices"][0]
    assert device["phase"] == "decode"
    assert (device["running"], device["waiting"]) == (2, 1)
    assert device["emitted_tokens_total"] == 109
    assert device["counters"]["emitted_tokens_total"] == 109
    assert device["memory_foreign_bytes"] == 55
    assert (device["generation"], device["deaths_total"]) == (3, 2)


def test_a_device_without_a_process_shows_what_it_had_counted() -> None:
    slot = slot_in(DeviceState.BACKOFF, reason="killed by SIGKILL")
    slot.history.odometer.fold(page(lambda w: w.add("emitted_tokens_total", 100)))
    slot.pid = None
    device = told([slot])["devices"][0]
    assert device["phase"] is None
    assert device["emitted_tokens_total"] == 100
    assert (device["state"], device["reason"]) == ("backoff", "killed by SIGKILL")


def test_a_device_names_its_models() -> None:
    slots = [Slot("fake-0"), Slot("fake-1")]
    document = told(slots, loaded_record("a", "fake-1"), loaded_record("b", "fake-1"))
    assert [device["models"] for device in document["devices"]] == [[], ["a", "b"]]


def test_a_loaded_model_shows_what_its_device_reported() -> None:
    record = loaded_record()
    record.loaded = loaded_message(dtype="bf16", quant="q8", architecture="Llama")
    record.load_seconds = 1.5
    slot = Slot()
    slot.page = page(lambda w: w.model(0, "tiny", 3, 4, 123.0))
    model = told([slot], record)["models"][0]
    assert model["status"] == "loaded"
    assert model["servable"] == {"ok": True, "reason": ""}
    assert (model["stage"], model["percent"], model["eta_s"]) == (None, 100.0, None)
    assert (model["context"], model["resident_bytes"]) == (8192, 1000)
    assert (model["dtype"], model["quant"]) == ("bf16", "q8")
    assert model["architecture"] == "Llama"
    assert (model["running"], model["waiting"]) == (3, 4)
    assert (model["last_used_s"], model["load_seconds"]) == (123.0, 1.5)
    assert model["capabilities"]["chat"] is True


def test_a_model_that_is_only_known_shows_what_it_would_be() -> None:
    model = told([Slot()], ModelRecord(Model("tiny", "fake", context=512)))["models"][0]
    assert (model["status"], model["percent"]) == ("unloaded", 0.0)
    assert (model["context"], model["dtype"]) == (512, "auto")
    assert model["digest"] is model["folder"] is model["last_used_s"] is None
    assert model["servable"] == {"ok": False, "reason": "it is unloaded"}


def test_a_model_that_gives_vectors_says_so_and_chats_not() -> None:
    record = loaded_record("m")
    info = {"kind": "embedding", "dimensions": 384, "matryoshka": True}
    record.loaded = loaded_message(**info)
    model = told([], record)["models"][0]
    assert {key: model[key] for key in info} == info
    assert model["capabilities"]["embedding"] is True
    assert model["capabilities"]["chat"] is False


@pytest.mark.parametrize(
    ("source", "kind"),
    [("embedded:minilm", "embedding"), ("embedded:smollm2", "chat"), ("fake", None)],
)
def test_what_an_embedded_model_does_is_known_before_it_is_loaded(
    source: str, kind: str | None
) -> None:
    assert told([], ModelRecord(Model("m", source)))["models"][0]["kind"] == kind


def test_a_load_shows_how_far_it_is() -> None:
    record = ModelRecord(Model("tiny", "fake"))
    record.move(ModelEvent.LOAD)
    record.progress = Progress(PLAIN, time.monotonic() - 10.0)
    record.progress.report("weights", 50, 90)
    model = told([Slot()], record)["models"][0]
    assert (model["status"], model["stage"]) == ("loading", "weights")
    assert model["percent"] == 50.0
    assert model["eta_s"] == pytest.approx(10.0, abs=1.0)


def test_a_model_is_servable_only_when_its_device_takes_requests() -> None:
    slot = slot_in(DeviceState.STARTING)
    model = told([slot], loaded_record())["models"][0]
    assert model["status"] == "recovering"
    assert model["servable"] == {"ok": False, "reason": "it is recovering"}


def test_a_model_that_failed_shows_why() -> None:
    model = told([Slot()], failed_record())["models"][0]
    assert (model["status"], model["reason"]) == ("failed", "no weights")
    assert model["servable"] == {"ok": False, "reason": "no weights"}
    assert model["error"][0] == "load_failed"


S = DeviceState


@pytest.mark.parametrize(
    ("states", "state"),
    [
        ([], "impaired"),
        ([S.ABSENT], "starting"),
        ([S.STARTING, S.ABSENT], "starting"),
        ([S.READY], "ready"),
        ([S.READY, S.STARTING], "ready"),
        ([S.READY, S.DYING], "impaired"),
        ([S.READY, S.BACKOFF], "impaired"),
        ([S.READY, S.FAILED], "impaired"),
        ([S.FAILED], "impaired"),
        ([S.STARTING, S.FAILED], "impaired"),
    ],
)
def test_the_node_is_as_its_devices_are(states: list[DeviceState], state: str) -> None:
    slots = [slot_in(s, f"fake-{i}", "gone") for i, s in enumerate(states)]
    assert told(slots)["state"] == state


def test_a_node_that_stops_says_so_whatever_else_is() -> None:
    assert told([slot_in(S.FAILED)], is_stopping=True)["state"] == "stopping"


def test_a_failed_model_impairs_the_node() -> None:
    assert told([Slot()], loaded_record(), failed_record())["state"] == "impaired"


def test_cuda_that_does_not_work_impairs_the_node() -> None:
    assert told([Slot()], cuda_problem="driver too old")["state"] == "impaired"


def test_a_healthy_node_has_nothing_to_say() -> None:
    assert told([Slot()], loaded_record())["health"] == []


def line(level: str, code: str, text: str) -> dict[str, str]:
    row = TABLE[code]
    return {"level": level, "code": row.ref, "text": text, "next": row.next_command}


@pytest.mark.parametrize(
    ("state", "level", "code"),
    [
        (S.DYING, "warning", "device_fault"),
        (S.BACKOFF, "warning", "device_fault"),
        (S.FAILED, "error", "device_failed"),
    ],
)
def test_a_device_that_is_away_is_a_line_with_a_next_step(
    state: DeviceState, level: str, code: str
) -> None:
    slots = [slot_in(state, reason="exit 111 (temporary)"), Slot("fake-1")]
    text = f"device fake-0 is {state}: exit 111 (temporary)"
    assert told(slots)["health"] == [line(level, code, text)]
    assert TABLE[code].next_command.startswith("cortexctl")


def test_a_device_on_its_way_back_is_a_line_that_says_why_it_went() -> None:
    slots = [slot_in(S.STARTING, reason="killed by SIGSEGV"), slot_in(S.STARTING, "b")]
    text = "device fake-0 is starting: killed by SIGSEGV"
    assert told(slots)["health"] == [line("warning", "device_fault", text)]


def test_s36_a_device_that_waits_for_a_cure_names_it_as_the_next_step() -> None:
    slot = slot_in(S.FAILED, reason="Xid 79")
    slot.cure = "reboot the host"
    (shown,) = told([slot])["health"]
    assert shown["next"] == "reboot the host"
    assert told([slot])["devices"][0]["cure"] == "reboot the host"


def test_s01_a_device_remembers_its_deaths() -> None:
    slot = Slot()
    slot.history.faults["hang"] = 2
    slot.history.num_suspects, slot.history.num_convicted = 5, 1
    slot.history.recovery.died(0.0)
    device = told([slot])["devices"][0]
    assert device["faults_total"] == {"hang": 2}
    assert (device["suspects_total"], device["convicted_total"]) == (5, 1)
    assert device["recovery"]["detect_s"] > 0
    assert device["recovery"]["first_token_s"] is None


def test_s16_who_is_quarantined_stands_in_the_document() -> None:
    held = [{"fingerprint": "0" * 32, "model": "tiny", "until_s": 9.0}]
    assert told([Slot()], quarantined=held)["quarantined"] == held


@pytest.mark.parametrize("code", ["load_failed", "insufficient_vram"])
def test_a_model_that_failed_is_a_line_of_its_error(code: str) -> None:
    text = "model bad could not be loaded: no weights"
    health = told([Slot()], failed_record(code))["health"]
    assert health == [line("warning", code, text)]


def test_s18_cuda_that_does_not_work_is_a_line() -> None:
    health = told([Slot()], cuda_problem="driver too old")["health"]
    assert health == [line("error", "cuda_unavailable", "driver too old")]


def test_every_status_of_a_model_can_be_shown() -> None:
    for status in ModelStatus:
        record = ModelRecord(Model("tiny", "fake"))
        record.status = status
        assert told([Slot()], record)["models"][0]["id"] == "tiny"
