"""A worker's ties to the supervisor: lost, renewed, broken, and the last words."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ipc.journal import Journal
from neurond.frontend.node import Attachment
from neurond.serving.devices import Devices
from neurond.serving.requests import RequestTable
from tests.neurond.frontend.stage import JSON, Stage, on_stage, until

BODY = b'{"model_id": "m"}'


def unload(stage: Stage) -> Any:
    return stage.ask("POST", "/models/unload", body=BODY, headers=JSON)


def test_without_the_supervisor_facts_stay_and_orders_are_503(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        stage.control.close()
        stage.attach.close()
        await until(lambda: not stage.worker.is_attached("gpu-0"))
        assert (await stage.ask("GET", "/models")).status == 200
        refused = await unload(stage)
        assert (refused.status, refused.json["error"]["code"]) == (503, "overloaded")
        chat = await stage.chat("hi")
        assert chat.json["error"]["code"] == "model_recovering"

    on_stage(tmp_path, play)


def test_both_ties_are_renewed_when_the_supervisor_is_back(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        stage.control.close()
        stage.attach.close()
        stage.links.clear()
        await until(lambda: not stage.worker.is_attached("gpu-0"))
        stage.open_sockets()
        await until(lambda: bool(stage.links))
        assert stage.device is not None
        stage.device.close()
        await stage.raise_device(1)
        assert (await stage.chat("hi")).status == 200
        stage.answers["unload"] = {"status": "unloaded", "version": "b.1"}
        await until(lambda: len(stage.control.connections) == 1)
        assert (await unload(stage)).status == 200

    on_stage(tmp_path, play)


def test_a_supervisor_that_does_not_answer_an_order_is_503(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        stage.answers["events"] = asyncio.Event()
        headers = {"last-event-id": "1"}
        asking = asyncio.ensure_future(stage.ask("GET", "/events", headers=headers))
        await until(lambda: len(stage.orders) == 1)
        stage.control.close()
        assert (await asking).json["error"]["code"] == "overloaded"

    on_stage(tmp_path, play)


def test_a_broken_channel_is_replaced_by_a_new_attachment(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        device = stage.device
        assert device is not None
        device.on_submit = device.end.send  # type: ignore[assignment]
        first = stage.links[0]
        broken = await stage.chat("hi")
        assert broken.status == 503
        assert "channel to a device broke" in stage.log.getvalue()
        await until(lambda: bool(stage.links) and stage.links[0] is not first)
        device.close()
        await stage.raise_device(2)
        assert (await stage.chat("hi")).status == 200

    on_stage(tmp_path, play)


def test_a_mend_ends_with_its_lease_and_leaves_the_next_one_alone(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        journal = Journal("test", stream=stage.log, mode="text")
        tie = Attachment(stage.settings, journal, name="w", build="b")
        table = RequestTable(first_id=1, max_entries=1)
        task = asyncio.create_task(tie.keep(Devices(table, journal, lambda: None)))
        await until(lambda: len(stage.links) == 2)
        idle = asyncio.Event()
        tie.mend(idle.is_set)
        stage.links[1].close()
        await until(lambda: len(stage.links) == 3)
        renewed = stage.links[2]
        idle.set()
        await asyncio.sleep(0.6)  # two polls
        assert stage.links[2] is renewed
        task.cancel()

    on_stage(tmp_path, play)


def test_s32_a_stream_that_a_stop_cuts_ends_with_an_error_event(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        device = stage.device
        assert device is not None
        device.on_submit = lambda submit: device.begin(submit, "abc")
        got: list[bytes] = []
        stream = stage.chat("hi", stream=True, on_chunk=got.append)
        client = asyncio.ensure_future(stream)
        await until(lambda: b"abc" in b"".join(got))
        await stage.publish(node_state="stopping")
        client.cancel()  # as the server does when the drain is over
        await asyncio.wait([client])
        body = b"".join(got)
        assert b'"code":"shutting_down"' in body
        assert b"[DONE]" not in body
        assert len(device.cancelled) == 1

    on_stage(tmp_path, play)


def test_s32_readers_of_events_do_not_hold_up_a_stop(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        reading = asyncio.ensure_future(stage.ask("GET", "/events"))
        await until(lambda: stage.worker.hub.num_readers == 1)
        stage.control.publish("events", {"id": 1, "kind": "node.stopping"})
        answer = await asyncio.wait_for(reading, 5)
        assert answer.body.endswith(b'"kind":"node.stopping"}\n\n')
        assert stage.worker.hub.num_readers == 0

    on_stage(tmp_path, play)


def test_a_reader_of_events_that_falls_behind_is_let_go(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        reading = asyncio.ensure_future(
            stage.ask("GET", "/events", on_chunk=lambda _chunk: None)
        )
        await asyncio.sleep(0)
        hub = stage.worker.hub
        await until(lambda: hub.num_readers == 1)
        for number in range(600):  # in one turn of the loop: nobody can read
            hub.publish({"id": number, "kind": "x"})
        assert hub.num_readers == 0
        answer = await reading
        assert answer.body.count(b"event: x") == 256

    on_stage(tmp_path, play)
