"""Requests over the death of their device, as the client of a worker sees them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import ServiceError
from ipc.messages import Cancel, Submit
from neurond.frontend.resumption import fate
from neurond.serving.fingerprint import fingerprint
from tests.neurond.frontend.stage import MODEL, Device, Stage, on_stage, until
from tests.neurond.serving.asgi import Answer, frames

ANSWER = "echo: hi"
BEGUN = "echo"


def hold(stage: Stage) -> Device:
    """Have the device begin what it is given and leave it there."""
    device = stage.device
    assert device is not None
    device.on_submit = lambda submit: device.begin(submit, BEGUN)
    return device


async def begun_stream(
    stage: Stage, **fields: Any
) -> tuple[asyncio.Task[Answer], list[bytes]]:
    """A chat as a stream whose beginning the client has seen."""
    got: list[bytes] = []
    asked = stage.chat("hi", stream=True, on_chunk=got.append, **fields)
    streaming = asyncio.create_task(asked)
    await until(lambda: BEGUN.encode() in b"".join(got))
    return streaming, got


async def all_parked(stage: Stage, number: int) -> None:
    table = stage.worker._table  # noqa: SLF001
    await until(lambda: len(table.parked) == number)


def text_of(chunks: list[Any]) -> str:
    choices = [c for chunk in chunks if chunk != "[DONE]" for c in chunk["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def within(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, 5)


def test_s01_s47_a_stream_and_a_whole_answer_go_on_where_the_device_died(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        first = hold(stage)
        usage = {"include_usage": True}
        streaming, _ = await begun_stream(stage, stream_options=usage)
        waiting = asyncio.ensure_future(stage.chat("hi"))
        await until(lambda: len(first.got) == 2)
        await stage.kill_device(1)
        await all_parked(stage, 2)
        second = await stage.raise_device(2)
        chunks = frames((await within(streaming)).body)
        assert chunks[-1] == "[DONE]"
        assert text_of(chunks[:-1]) == ANSWER
        assert chunks[-2]["usage"]["completion_tokens"] == len(ANSWER)
        whole = (await within(waiting)).json
        assert whole["choices"][0]["message"]["content"] == ANSWER
        assert whole["usage"]["completion_tokens"] == len(ANSWER)
        again = [m for m in second.got if isinstance(m, Submit)]
        assert [m.attempt for m in again] == [1, 1]
        assert {m.id for m in again} == {m.id for m in first.got}

    on_stage(tmp_path, play)


def test_a_stream_is_kept_alive_while_its_device_is_away(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        hold(stage)
        streaming, got = await begun_stream(stage)
        await stage.kill_device(1)
        num_before = len(got)
        await until(lambda: any(c.startswith(b":") for c in got[num_before:]))
        await stage.raise_device(2)
        assert frames((await within(streaming)).body)[-1] == "[DONE]"

    on_stage(tmp_path, play)


def test_one_that_no_device_had_accepted_is_answered_by_the_next_life(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        first = stage.device
        assert first is not None
        first.on_submit = lambda _submit: None
        waiting = asyncio.ensure_future(stage.chat("hi"))
        await until(lambda: bool(first.got))
        await stage.kill_device(1)
        await stage.raise_device(2)
        answer = await within(waiting)
        assert answer.json["choices"][0]["message"]["content"] == ANSWER

    on_stage(tmp_path, play)


def test_s14_one_that_was_not_accepted_in_time_hears_that_the_model_recovers(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        first = stage.device
        assert first is not None
        first.on_submit = lambda _submit: None
        waiting = asyncio.ensure_future(stage.chat("hi"))
        await until(lambda: bool(first.got))
        await stage.kill_device(1)
        answer = await within(waiting)
        assert answer.status == 503
        assert answer.json["error"]["code"] == "model_recovering"
        await all_parked(stage, 0)

    on_stage(tmp_path, play)


def test_s16_a_convicted_request_ends_and_is_refused_when_it_comes_again(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        device = hold(stage)
        streaming, _ = await begun_stream(stage)
        waiting = asyncio.ensure_future(stage.chat("hi"))
        await until(lambda: len(device.got) == 2)
        guilty, other = [m for m in device.got if isinstance(m, Submit)]
        await stage.kill_device(1, ((other.id, 5),), (guilty.id,))
        chunks = frames((await within(streaming)).body)
        assert chunks[-1]["error"]["code"] == "request_quarantined"
        await until(lambda: bool(stage.quarantined))
        (told,) = stage.quarantined
        assert (told.model, told.fingerprint) == (MODEL, fingerprint(MODEL, guilty.ids))
        second = await stage.raise_device(2)
        assert (await within(waiting)).status == 200
        (again,) = [m for m in second.got if isinstance(m, Submit)]
        trial = (again.trial_group, again.trial_until)
        assert trial == (5, len(again.ids) - again.num_prompt + 2)

    on_stage(tmp_path, play)


def test_s16_no_endpoint_submits_a_prompt_that_is_quarantined(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        device = stage.device
        assert device is not None
        assert (await stage.chat("bad")).status == 200
        ids = list(device.got[-1].ids)  # type: ignore[union-attr]
        num_before = len(device.got)
        entry = {"fingerprint": fingerprint(MODEL, ids), "model": MODEL}
        await stage.publish(node_quarantined=[{**entry, "until_s": time.time() + 60}])
        for answer in (
            await stage.chat("bad", temperature=0.5),
            await stage.chat("bad", stream=True),
            await stage.post("/v1/completions", prompt=ids),
        ):
            assert answer.status == 422
            assert answer.json["error"]["code"] == "request_quarantined"
        assert len(device.got) == num_before
        assert (await stage.chat("good")).status == 200
        await stage.publish(node_quarantined=[{**entry, "until_s": time.time() - 1}])
        assert (await stage.chat("bad")).status == 200

    on_stage(tmp_path, play)


def test_who_waits_too_long_gets_a_status_or_an_event_with_the_fault(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        device = hold(stage)
        streaming, _ = await begun_stream(stage)
        waiting = asyncio.ensure_future(stage.chat("hi"))
        await until(lambda: len(device.got) == 2)
        await stage.kill_device(1)
        chunks = frames((await within(streaming)).body)
        assert chunks[-1]["error"]["code"] == "device_fault"
        assert "[DONE]" not in chunks
        answer = await within(waiting)
        assert (answer.status, answer.json["error"]["code"]) == (503, "device_fault")
        assert int(answer.headers["retry-after"]) >= 1

    on_stage(tmp_path, play, resume_deadline_s=0.3)


def test_a_failed_device_hands_its_requests_to_the_one_that_has_the_model_now(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        hold(stage)
        streaming, _ = await begun_stream(stage)
        await stage.kill_device(1)
        states = [
            {"device": "gpu-0", "kind": "fake", "state": "failed", "generation": 1},
            {"device": "gpu-1", "kind": "fake", "state": "ready", "generation": 4},
        ]
        await stage.publish(node_devices=states, status="recovering", devices=[])
        other = await stage.raise_device(4, "gpu-1")
        assert other.got == []
        await stage.publish(status="loaded", devices=["gpu-1"])
        chunks = frames((await within(streaming)).body)
        assert text_of(chunks[:-1]) == ANSWER

    on_stage(tmp_path, play)


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        ("failed", ["device_failed", "out", None, None, None, []], "device_failed"),
        ("failed", ["load_failed", "no", None, None, None, []], "no_healthy_node"),
        ("unloaded", None, "no_healthy_node"),
    ],
)
def test_a_model_that_does_not_come_back_ends_what_waits_for_it(
    tmp_path: Path, status: str, error: list[Any] | None, code: str
) -> None:
    async def play(stage: Stage) -> None:
        hold(stage)
        streaming, _ = await begun_stream(stage)
        await stage.kill_device(1)
        await stage.publish(status=status, devices=[], error=error)
        chunks = frames((await within(streaming)).body)
        assert chunks[-1]["error"]["code"] == code

    on_stage(tmp_path, play)


def test_a_client_that_leaves_while_its_request_is_parked_leaves_nothing(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        hold(stage)
        streaming, _ = await begun_stream(stage)
        await stage.kill_device(1)
        await all_parked(stage, 1)
        streaming.cancel()
        await all_parked(stage, 0)
        second = await stage.raise_device(2)
        assert (await stage.chat("other")).status == 200
        assert len([m for m in second.got if isinstance(m, Submit)]) == 1

    on_stage(tmp_path, play)


def test_a_supervisor_that_is_attached_anew_gets_the_requests_again(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        first = hold(stage)
        streaming, _ = await begun_stream(stage)
        stage.links[0].close()
        stage.links.clear()
        await until(lambda: bool(stage.links))
        first.close()
        second = await stage.raise_device(1)  # the same life, a pair of its own
        assert frames((await within(streaming)).body)[-1] == "[DONE]"
        assert not [m for m in second.got if isinstance(m, Cancel)]

    on_stage(tmp_path, play)


# ---- what becomes of the parked, case by case

LOADED = {"status": "loaded", "devices": ["a"]}


@pytest.mark.parametrize(
    ("fact", "devices", "decided"),
    [
        (LOADED, {"a": "ready"}, "a"),
        (LOADED | {"status": "recovering"}, {"a": "ready"}, None),
        (LOADED, {"a": "starting"}, None),
        (LOADED, {"a": "backoff", "b": "ready"}, None),
        (LOADED | {"status": "recovering"}, {"a": "starting"}, None),
        (LOADED | {"devices": ["b"]}, {"a": "ready", "b": "ready"}, "b"),
        (LOADED | {"devices": ["a", "b"]}, {"a": "failed", "b": "ready"}, "b"),
        (LOADED | {"devices": ["a", "b"]}, {"a": "backoff", "b": "ready"}, None),
        (LOADED | {"devices": ["b"]}, {"a": "failed", "b": "dying"}, None),
        ({"status": "loading", "devices": ["b"]}, {"b": "ready"}, None),
        ({"status": "recovering", "devices": []}, {"a": "failed"}, None),
    ],
)
def test_a_parked_request_waits_or_moves(
    fact: dict[str, Any], devices: dict[str, str], decided: str | None
) -> None:
    assert fate("a", fact, devices) == decided


@pytest.mark.parametrize("status", ["failed", "unloading", "unloaded", None])
def test_a_parked_request_ends_with_its_model(status: str | None) -> None:
    fact: dict[str, Any] | None = None
    if status:
        fact = {"status": status, "devices": [], "error": None}
    decided = fate("a", fact, {"a": "ready"})
    assert isinstance(decided, ServiceError)
    assert (decided.code, decided.status) == ("no_healthy_node", 503)
    assert decided.retry_after_s is not None
