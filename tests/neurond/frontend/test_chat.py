"""Chats through a worker between real sockets and rings: served, refused, released."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import error_for
from ipc.messages import Failed, Finished, Submit, TokenRow, Tokens
from tests.neurond.frontend.stage import Device, Stage, on_stage, until
from tests.neurond.serving.asgi import frames


def text_of(chunks: list[Any], index: int = 0) -> str:
    choices = [c for chunk in chunks if chunk != "[DONE]" for c in chunk["choices"]]
    mine = [c["delta"].get("content", "") for c in choices if c["index"] == index]
    return "".join(mine)


def test_a_chat_is_answered_whole(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        answer = await stage.chat("größer 😀")
        assert answer.status == 200
        choice = answer.json["choices"][0]
        assert choice["message"]["content"] == "echo: größer 😀"
        assert choice["finish_reason"] == "stop"
        usage = answer.json["usage"]
        assert usage["completion_tokens"] == len("echo: größer 😀".encode())
        assert (
            usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        )

    on_stage(tmp_path, play)


def test_a_stream_has_role_text_finish_usage_and_done_in_this_order(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        answer = await stage.chat(
            "hi", stream=True, stream_options={"include_usage": True}
        )
        assert answer.headers["content-type"] == "text/event-stream"
        chunks = frames(answer.body)
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert text_of(chunks) == "echo: hi"
        assert chunks[-3]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-2]["choices"] == []
        assert chunks[-2]["usage"]["completion_tokens"] == 8
        assert chunks[-1] == "[DONE]"
        assert len({chunk["id"] for chunk in chunks[:-1]}) == 1

    on_stage(tmp_path, play)


def test_a_gateway_gets_the_figures_as_a_comment_before_the_end(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        answer = await stage.chat("hi", stream=True, headers={"x-cortex-usage": "1"})
        comment, done = answer.body.decode().split("\n\n")[-3:-1]
        assert comment.startswith(": usage ")
        assert json.loads(comment[8:])["completion_tokens"] == 8
        assert done == "data: [DONE]"
        assert b": usage" not in (await stage.chat("hi", stream=True)).body

    on_stage(tmp_path, play)


def test_n_choices_are_n_sequences(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        chunks = frames((await stage.chat("hi", stream=True, n=3)).body)
        assert [text_of(chunks, i) for i in range(3)] == ["echo: hi"] * 3
        whole = (await stage.chat("hi", n=2)).json
        assert [c["index"] for c in whole["choices"]] == [0, 1]
        assert whole["usage"]["completion_tokens"] == 16

    on_stage(tmp_path, play)


def test_stop_strings_and_limits_decide_the_finish_reason(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        stopped = (await stage.chat("hi", stop=["o: h"])).json["choices"][0]
        assert (stopped["message"]["content"], stopped["finish_reason"]) == (
            "ech",
            "stop",
        )
        cut = (await stage.chat("hi", max_tokens=99, max_completion_tokens=4)).json
        assert cut["choices"][0]["message"]["content"] == "echo"
        assert cut["choices"][0]["finish_reason"] == "length"

    on_stage(tmp_path, play)


def test_s70_the_models_defaults_reach_the_device(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = {"eos_token_id": [257, 3], "temperature": 0.3, "top_p": 0.8}

    async def play(stage: Stage) -> None:
        (folder / "generation_config.json").write_text(json.dumps(config))
        await stage.publish(status="unloaded")
        await stage.publish(status="loaded")
        await stage.chat("hi", top_p=0.5)
        await stage.chat("hi", seed=-1)
        assert stage.device is not None
        first, second = [m for m in stage.device.got if isinstance(m, Submit)]
        assert (first.sampling.temperature, first.sampling.top_p) == (0.3, 0.5)
        assert first.stop_ids == (3, 257)
        assert first.seed != second.seed == (1 << 64) - 1

    on_stage(tmp_path, play)


def test_s09_a_client_that_leaves_in_mid_stream_cancels_its_request(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        device = stage.device
        assert device is not None
        device.on_submit = lambda submit: device.begin(submit, "abc")
        for stream in (True, False):
            client = asyncio.ensure_future(stage.chat("hi", stream=stream))
            await until(lambda: len(device.got) > 0)
            submitted = device.got[-1]
            client.cancel()
            await until(lambda: bool(device.cancelled))
            assert isinstance(submitted, Submit)
            assert device.cancelled == [submitted.id]
            device.got.clear()

    on_stage(tmp_path, play)


def test_without_resume_a_death_in_mid_stream_ends_it_with_an_error_and_no_done(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        device = stage.device
        assert device is not None
        device.on_submit = lambda submit: device.begin(submit, "abc")
        got: list[bytes] = []
        waiting = asyncio.ensure_future(stage.chat("hi"))
        streaming = asyncio.ensure_future(
            stage.chat("hi", stream=True, on_chunk=got.append)
        )
        await until(lambda: b"abc" in b"".join(got))
        await stage.kill_device(1)
        chunks = frames((await streaming).body)
        assert chunks[-1]["error"]["code"] == "device_fault"
        assert "[DONE]" not in chunks
        answer = await waiting
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1

    on_stage(tmp_path, play, resume=False)


def test_a_new_generation_serves_again_and_the_old_one_is_never_heard(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        await stage.kill_device(1)
        refused = await stage.chat("hi")
        assert refused.json["error"]["code"] == "model_recovering"
        await stage.raise_device(2)
        assert (await stage.chat("hi")).status == 200

    on_stage(tmp_path, play)


def test_s02_nan_fails_that_request_only(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        device = stage.device
        assert device is not None

        def fail(submit: Submit) -> None:
            device.begin(submit)
            wire = error_for("nan_logits", "NaN", chain=("Boom: /secret",)).to_wire()
            device.end.send(Failed(submit.id, wire))

        device.on_submit = fail
        answer = await stage.chat("hi")
        assert (answer.status, answer.json["error"]["code"]) == (500, "nan_logits")
        assert b"secret" not in answer.body
        device.on_submit = device.answer
        assert (await stage.chat("hi")).status == 200

    on_stage(tmp_path, play)


def test_a_device_that_repeats_tokens_loses_the_request_not_the_worker(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        device = stage.device
        assert device is not None

        def stutter(submit: Submit) -> None:
            device.begin(submit, "ab")
            device.end.send(Tokens((TokenRow(submit.id, 1, (98,)),)))

        device.on_submit = stutter
        answer = await stage.chat("hi")
        assert answer.json["error"]["code"] == "internal_error"
        assert "ProtocolViolation" in stage.log.getvalue()
        device.on_submit = device.answer
        assert (await stage.chat("hi")).status == 200

    on_stage(tmp_path, play)


def test_no_decision_within_a_second_is_503_and_the_request_is_withdrawn(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        device = stage.device
        assert device is not None
        device.on_submit = lambda _submit: None
        started_s = time.monotonic()
        answer = await stage.chat("hi", stream=True)
        assert (answer.status, answer.json["error"]["code"]) == (503, "overloaded")
        assert time.monotonic() - started_s < 3
        await until(lambda: len(device.cancelled) == 1)

    on_stage(tmp_path, play)


def test_silence_is_filled_with_comments(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        device = stage.device
        assert device is not None

        def answer_late(submit: Submit) -> None:
            device.begin(submit)
            loop = asyncio.get_running_loop()
            loop.call_later(1.2, finish_late, device, submit)

        device.on_submit = answer_late
        body = (await stage.chat("hi", stream=True)).body
        assert body.count(b": keep-alive\n\n") == 1
        assert frames(body)[-1] == "[DONE]"

    on_stage(tmp_path, play)


def finish_late(device: Device, submit: Submit) -> None:
    device.end.send(Finished(submit.id, "stop", len(submit.ids), 0, 0))


def test_s22_a_full_worker_refuses_at_once(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        device = stage.device
        assert device is not None
        device.on_submit = lambda submit: device.begin(submit, "a")
        busy = [asyncio.ensure_future(stage.chat("hi", n=4)) for _ in range(2)]
        await until(lambda: len(device.got) == 8)
        answer = await stage.chat("hi")
        assert (answer.status, answer.json["error"]["code"]) == (429, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        for client in busy:
            client.cancel()
        await until(lambda: len(device.cancelled) == 8)
        device.on_submit = device.answer
        assert (await stage.chat("hi")).status == 200

    on_stage(tmp_path, play)


LOAD_FAILED = error_for("load_failed", "no").to_wire()
SHORT_OF_MEMORY = {"ok": False, "reason": "memory is short"}


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"status": "loading", "percent": 40, "eta_s": 7.5}, 503, "model_loading"),
        ({"status": "converting"}, 503, "model_loading"),
        ({"status": "recovering"}, 503, "model_recovering"),
        ({"status": "unloaded"}, 503, "no_healthy_node"),
        ({"status": "failed", "error": LOAD_FAILED}, 503, "no_healthy_node"),
        ({"status": "something new"}, 503, "no_healthy_node"),
        ({"servable": SHORT_OF_MEMORY}, 503, "no_healthy_node"),
        ({"node_state": "stopping"}, 503, "shutting_down"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_serve_now_is_503_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], status: int, code: str
) -> None:
    async def play(stage: Stage) -> None:
        await stage.publish(**changes)
        answer = await stage.chat("hi")
        assert (answer.status, answer.json["error"]["code"]) == (status, code)
        assert int(answer.headers["retry-after"]) >= 1
        if "eta_s" in changes:
            assert answer.headers["retry-after"] == "8"
            assert answer.json["error"]["percent"] == 40

    on_stage(tmp_path, play)


def test_client_mistakes_are_refused_before_the_device_hears_of_them(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        unknown = await stage.chat("hi", model="nope")
        assert (unknown.status, unknown.json["error"]["code"]) == (
            404,
            "model_not_found",
        )
        assert (await stage.chat("hi", messages=[])).json["error"][
            "param"
        ] == "messages"
        long = (await stage.chat("x" * 9000)).json["error"]
        assert long["code"] == "context_length_exceeded"
        assert (long["max"], long["prompt_len"] > 9000) == (8192, True)
        bad = await stage.chat("hi", temperature=3)
        assert bad.json["error"]["param"] == "temperature"
        big = await stage.chat("x" * 100_001)
        assert big.status == 413
        form = await stage.chat("hi", headers={"content-type": "text/plain"})
        assert form.status == 415
        assert stage.device is not None
        assert stage.device.got == []

    on_stage(tmp_path, play)


def test_s43_a_placeholder_key_is_ignored_while_auth_is_off(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        key = {"authorization": "Bearer sk-placeholder"}
        assert (await stage.chat("hi", headers=key)).status == 200

    on_stage(tmp_path, play)
