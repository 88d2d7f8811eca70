"""control.sock of a node: questions, orders and refusals, over a real socket."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ipc.control import ControlClient
from ipc.errors import CapacityError, ClientError, HostError, ServiceError
from ipc.eventlog import EventLog
from ipc.messages import Inject, LoadFailed
from ipc.settings import dump
from ipc.unixsocket import bind_unix
from neurond import config, facts
from neurond.config import Config, Model
from neurond.discovery import HostFacts
from neurond.injecting import Injector
from neurond.modelrecord import ModelRecord
from neurond.operators import Operators, Orders
from neurond.states import ModelStatus
from tests.neurond.lifekit import Node
from tests.neurond.slotkit import as_slots, loaded_message, running, until

SECRET = "s3cret"


class Desk:
    """A served control socket, its client, and what it set in motion."""

    def __init__(self, folder: Path) -> None:
        self.node = Node(folder)
        self.is_stopping = False
        self.done: list[tuple[str, str]] = []
        self.events = EventLog(folder / "events.jsonl")
        self.path = folder / "control.sock"
        self.client = ControlClient()
        orders = Orders(
            state=self.state,
            metrics=lambda: {"devices": []},
            lifecycle=self.node.life,
            want=lambda record: self.done.append(("want", record.spec.id)),
            release=lambda model: self.done.append(("release", model)),
            respawn=self.respawn,
            reset_done=lambda name: self.done.append(("reset_done", name)),
            injector=Injector(lambda: as_slots(*self.node.slots), is_allowed=True),
            stop=lambda: self.done.append(("stop", "")),
        )
        told = config.load(None, {"NEURON_NODE__TOKEN": SECRET, **LIMITS})
        listener = bind_unix(self.path, socket.SOCK_STREAM, 0o600)
        self.operators = Operators(listener, orders, told, self.events)

    def state(self) -> dict[str, Any]:
        own = facts.Own(
            node="node-1",
            boot_id="b00t",
            residency=self.node.life.residency,
            started_s=0.0,
            is_stopping=self.is_stopping,
            listen={},
            host=HostFacts(1, 1, 1, "host-1"),
            cuda_problem="",
            foreign_bytes={},
        )
        slots = as_slots(*self.node.slots)
        return facts.of_node(own, slots, self.node.life.records.values())

    def respawn(self, device: str) -> None:
        if device != "fake-0":
            raise ClientError(f"there is no device {device}", param="device")
        self.done.append(("respawn", device))

    async def ask(self, op: str, **args: Any) -> dict[str, Any]:
        return await self.client.request(op, args, 5.0)

    async def refusal(self, op: str, **args: Any) -> ServiceError:
        with pytest.raises(ServiceError) as caught:
            await self.ask(op, **args)
        return caught.value


LIMITS = {"NEURON_LIMITS__LOAD_DEADLINE_S": "0.3"}


def at_desk(
    test: Callable[[Desk], Awaitable[None]],
) -> Callable[[Path], None]:
    @functools.wraps(test)
    async def served(tmp_path: Path) -> None:
        desk = Desk(tmp_path)
        desk.operators.start(asyncio.get_running_loop())
        await desk.client.connect(desk.path, 5.0)
        try:
            await test(desk)
        finally:
            desk.client.close()
            desk.operators.close()
            await desk.node.life.stop()

    del served.__wrapped__  # pytest looks at its arguments
    return running(served)


# ---- what is


@at_desk
async def test_status_is_the_whole_facts_document(desk: Desk) -> None:
    told, now = await desk.ask("status"), desk.state()
    assert {**told, "time_s": 0} == {**now, "time_s": 0}


@at_desk
async def test_models_and_devices_are_cut_from_the_facts(desk: Desk) -> None:
    assert await desk.ask("models") == {"models": desk.state()["models"]}
    assert await desk.ask("devices") == {"devices": desk.state()["devices"]}


@at_desk
async def test_version_and_metrics_are_answered(desk: Desk) -> None:
    assert await desk.ask("version") == {"node": "node-1", **facts.versions()}
    assert await desk.ask("metrics") == {"devices": []}


@at_desk
async def test_files_of_a_model_are_found_before_it_was_ever_loaded(desk: Desk) -> None:
    folder = Path((await desk.ask("files", model_id="tiny"))["folder"])
    assert (folder / "tokenizer.json").is_file()
    assert desk.node.life.records["tiny"].status is ModelStatus.UNLOADED
    assert (await desk.refusal("files", model_id="nope")).code == "model_not_found"
    assert (await desk.refusal("files")).param == "model_id"
    lost = await desk.refusal("files", model_id="lost")
    assert lost.code == "model_source_invalid"


@at_desk
async def test_files_of_a_gguf_that_was_never_converted_have_to_be_prepared(
    desk: Desk,
) -> None:
    source = desk.path.parent / "a.gguf"
    source.write_bytes(b"GGUF" + bytes(100))
    desk.node.life.records["g"] = ModelRecord(Model("g", str(source)))
    assert (await desk.refusal("files", model_id="g")).code == "no_healthy_node"


@at_desk
async def test_settings_hide_what_is_secret(desk: Desk) -> None:
    told = await desk.ask("settings")
    assert told["node"]["token"] == "***"
    assert SECRET not in str(told)
    assert set(told) == set(dump(Config()))


@at_desk
async def test_events_come_from_an_id_on_and_at_most_so_many(desk: Desk) -> None:
    for number in range(5):
        desk.events.append("node.started", number=number)
    told = await desk.ask("events", since=2, limit=2)
    assert [event["id"] for event in told["events"]] == [3, 4]
    assert len((await desk.ask("events"))["events"]) == 5
    assert (await desk.ask("events", since=99)) == {"events": []}


@pytest.mark.parametrize("field", ["since", "limit"])
@pytest.mark.parametrize("value", [-1, "1", 1.0, True, None, []])
def test_events_name_a_bad_field(field: str, value: Any, tmp_path: Path) -> None:
    @at_desk
    async def check(desk: Desk) -> None:
        error = await desk.refusal("events", **{field: value})
        assert (error.param, error.code) == (field, "invalid_request_error")

    check(tmp_path)


@at_desk
async def test_a_follower_gets_the_state_at_once_and_what_is_told(desk: Desk) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []
    desk.client.subscribe(["state", "events"], lambda *event: heard.append(event))
    await until(lambda: heard)
    assert heard[0][0] == "state"
    assert heard[0][1]["node"] == "node-1"
    desk.operators.tell_event(desk.events.append("device.died", device="fake-0"))
    desk.operators.tell_state({"node": "changed"})
    await until(lambda: len(heard) == 3)
    assert heard[1][1]["device"] == "fake-0"
    assert heard[2] == ("state", {"node": "changed"})


# ---- loads


@at_desk
async def test_a_load_answers_when_the_model_is_there(desk: Desk) -> None:
    asked = asyncio.create_task(desk.ask("load", model_id="tiny", context=512))
    await until(lambda: desk.node.slot.loads)
    assert not asked.done()
    assert desk.done == [("want", "tiny")]
    desk.node.says(loaded_message())
    told = await asked
    assert (told["status"], told["model"]["id"]) == ("loaded", "tiny")
    assert told["version"] == facts.etag(desk.state())
    assert desk.node.life.records["tiny"].spec.context == 512


@at_desk
async def test_a_load_that_need_not_wait_answers_at_once(desk: Desk) -> None:
    told = await desk.ask("load", model_id="tiny", wait=False)
    assert told["status"] == "loading"
    assert desk.done == [("want", "tiny")]


@at_desk
async def test_a_load_that_fails_answers_with_its_error(desk: Desk) -> None:
    asked = asyncio.create_task(desk.refusal("load", model_id="tiny"))
    await until(lambda: desk.node.slot.loads)
    wire = HostError("missing keys: a", code="load_failed").to_wire()
    desk.node.says(LoadFailed("tiny", wire))
    error = await asked
    assert (error.code, error.message) == ("load_failed", "missing keys: a")


@at_desk
async def test_a_load_that_takes_longer_than_its_deadline_goes_on(desk: Desk) -> None:
    error = await desk.refusal("load", model_id="tiny")
    assert isinstance(error, CapacityError)
    assert error.code == "model_loading"
    assert desk.node.status() is ModelStatus.LOADING


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_id", None),
        ("model_id", ""),
        ("model_id", 7),
        ("model_id", "../up"),
        ("source", 3),
        ("dtype", 3),
        ("quant", 3),
        ("context", "512"),
        ("context", -1),
        ("devices", "fake-0"),
        ("devices", ["gpu-9"]),
        ("pinned", "yes"),
        ("priority", 1.5),
        ("wait", "no"),
    ],
)
def test_a_load_names_a_bad_field_and_touches_nothing(
    field: str, value: Any, tmp_path: Path
) -> None:
    @at_desk
    async def check(desk: Desk) -> None:
        given = {"model_id": "tiny", "source": "fake", field: value}
        error = await desk.refusal("load", **given)
        assert (error.param, error.code) == (field, "invalid_request_error")
        assert desk.node.life.residency == 0
        assert desk.done == []

    check(tmp_path)


@at_desk
async def test_an_unknown_model_without_a_source_is_not_found(desk: Desk) -> None:
    for op in ("load", "unload"):
        assert (await desk.refusal(op, model_id="unheard")).code == "model_not_found"
    assert desk.done == []


@at_desk
async def test_a_node_that_stops_loads_nothing(desk: Desk) -> None:
    desk.is_stopping = True
    error = await desk.refusal("load", model_id="tiny")
    assert error.code == "shutting_down"


# ---- If-Match


@at_desk
async def test_an_order_against_the_version_that_is_goes_through(desk: Desk) -> None:
    version = facts.etag(desk.state())
    await desk.ask("load", model_id="tiny", if_match=version, wait=False)
    version = facts.etag(desk.state())
    await desk.ask("unload", model_id="tiny", if_match=version, wait=False)


@at_desk
async def test_an_order_against_an_old_version_is_refused(desk: Desk) -> None:
    old = facts.etag(desk.state())
    await desk.ask("load", model_id="other", wait=False)
    for op in ("load", "unload"):
        error = await desk.refusal(op, model_id="tiny", if_match=old, wait=False)
        assert (error.code, error.status) == ("version_conflict", 412)
    assert desk.node.status() is ModelStatus.UNLOADED


@at_desk
async def test_who_joins_a_load_has_no_version_to_lose(desk: Desk) -> None:
    old = facts.etag(desk.state())
    await desk.ask("load", model_id="tiny", wait=False, if_match=old)
    told = await desk.ask("load", model_id="tiny", wait=False, if_match=old)
    assert told["status"] == "loading"
    await until(lambda: desk.node.slot.loads)
    desk.node.says(loaded_message())
    assert (await desk.ask("load", model_id="tiny", if_match=old))["status"] == "loaded"


# ---- other orders


@at_desk
async def test_an_unload_is_remembered_and_answers_when_it_is_done(desk: Desk) -> None:
    await desk.node.loaded()
    asked = asyncio.create_task(desk.ask("unload", model_id="tiny"))
    await until(lambda: desk.node.slot.unloads)
    assert desk.done == [("release", "tiny")]
    desk.node.dies()
    assert (await asked)["status"] == "unloaded"


@at_desk
async def test_a_bad_unload_touches_nothing(desk: Desk) -> None:
    await desk.node.loaded()
    for args in ({"model_id": 3}, {"model_id": "tiny", "wait": 3}):
        await desk.refusal("unload", **args)
    assert desk.node.status() is ModelStatus.LOADED
    assert desk.done == []


@at_desk
async def test_a_respawn_reaches_its_device(desk: Desk) -> None:
    assert await desk.ask("respawn", device="fake-0") == {}
    assert desk.done == [("respawn", "fake-0")]


@at_desk
async def test_a_respawn_of_an_unknown_device_names_the_field(desk: Desk) -> None:
    for args in ({"device": "gpu-9"}, {}, {"device": 3}):
        assert (await desk.refusal("respawn", **args)).param == "device"
    assert desk.done == []


@at_desk
async def test_a_fault_is_simulated_and_what_can_be_is_listed(desk: Desk) -> None:
    listed = await desk.ask("faults")
    assert "segv" in [row["kind"] for row in listed["kinds"]]
    await desk.ask("inject", device="fake-0", kind="segv", at_step=4)
    assert desk.node.slot.sent == [Inject("segv", 4)]
    assert (await desk.refusal("inject", device="fake-0", kind="x")).param == "kind"


@at_desk
async def test_a_stop_is_ordered(desk: Desk) -> None:
    assert await desk.ask("stop") == {}
    assert desk.done == [("stop", "")]


@at_desk
async def test_an_unknown_operation_is_not_found(desk: Desk) -> None:
    assert (await desk.refusal("explode")).code == "not_found"
