"""/v1/completions through a worker between real sockets and rings."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipc.errors import error_for
from ipc.messages import (
    Accepted,
    Failed,
    Finished,
    PromptScores,
    Submit,
    TokenRow,
    Tokens,
)
from tests.neurond.frontend.stage import JSON, MODEL, Device, Stage, on_stage, until
from tests.neurond.serving.asgi import Answer, frames

PATH = "/v1/completions"


async def ask(stage: Stage, prompt: Any = "hi", **fields: Any) -> Answer:
    return await stage.post(PATH, prompt=prompt, **fields)


def device_of(stage: Stage) -> Device:
    assert stage.device is not None
    return stage.device


def submits(stage: Stage) -> list[Submit]:
    return [m for m in device_of(stage).got if isinstance(m, Submit)]


def text_of(chunks: list[Any], index: int = 0) -> str:
    choices = [c for chunk in chunks if chunk != "[DONE]" for c in chunk["choices"]]
    return "".join([c["text"] for c in choices if c["index"] == index])


def scored(device: Device) -> None:
    """Have each token scored by its value, and the prompt in two messages."""

    def answer(submit: Submit) -> None:
        device.end.send(Accepted(submit.id, 0, 0))
        for start in range(1, submit.num_prompt, 2):
            part = submit.ids[start : min(start + 2, submit.num_prompt)]
            values = tuple([-token / 8 for token in part])
            best = tuple([((token, -token / 8), (90, -0.5)) for token in part])
            if submit.sampling.prompt_logprobs >= 0:
                device.end.send(PromptScores(submit.id, start, values, best))
        for index, token in enumerate(b"ok!"[: submit.max_tokens]):
            row = TokenRow(submit.id, index, (token,))
            if submit.sampling.logprobs >= 0:
                tops = ((token, -0.25), (90, -0.5))[: submit.sampling.logprobs]
                row = replace(row, logprobs=(-0.25,), top=(tops,))
            device.end.send(Tokens((row,)))
        num = min(3, submit.max_tokens)
        device.end.send(Finished(submit.id, "length", submit.num_prompt, num, 0))

    device.on_submit = answer


def test_a_prompt_is_continued_as_it_is(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        answer = await ask(stage, "größer", max_tokens=99)
        assert answer.status == 200
        document = answer.json
        assert document["object"] == "text_completion"
        assert document["id"].startswith("cmpl-")
        assert document["choices"] == [
            {
                "index": 0,
                "text": "echo: größer",
                "logprobs": None,
                "finish_reason": "stop",
            }
        ]
        num_prompt = len("größer".encode())
        assert document["usage"]["prompt_tokens"] == num_prompt
        assert submits(stage)[0].ids == tuple("größer".encode())

    on_stage(tmp_path, play)


def test_the_default_is_16_tokens(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        answer = await ask(stage, "a long way to go")
        assert answer.json["choices"][0]["text"] == "echo: a long way"
        assert answer.json["choices"][0]["finish_reason"] == "length"

    on_stage(tmp_path, play)


def test_several_prompts_have_n_choices_each_in_their_order(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        fields = {"n": 2, "max_tokens": 99}
        whole = (await ask(stage, ["a", "bb", [99]], **fields)).json
        texts = [(c["index"], c["text"]) for c in whole["choices"]]
        said = ["echo: a", "echo: a", "echo: bb", "echo: bb", "echo: c", "echo: c"]
        assert texts == list(enumerate(said))
        assert whole["usage"]["prompt_tokens"] == 4
        assert whole["usage"]["completion_tokens"] == sum(map(len, said))
        streamed = frames((await ask(stage, ["a", "bb"], stream=True, **fields)).body)
        assert [text_of(streamed, i) for i in range(4)] == said[:4]

    on_stage(tmp_path, play)


def test_a_stream_has_text_finish_usage_and_done_in_this_order(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        options = {"include_usage": True}
        answer = await ask(stage, "hi", stream=True, stream_options=options)
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.body.startswith(b": keep-alive\n\n")
        chunks = frames(answer.body)
        assert text_of(chunks) == "echo: hi"
        assert {c["object"] for c in chunks[:-1]} == {"text_completion"}
        assert len({c["id"] for c in chunks[:-1]}) == 1
        assert chunks[-3]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-3]["usage"] is None
        assert chunks[-2]["choices"] == []
        assert chunks[-2]["usage"]["completion_tokens"] == 8
        assert chunks[-1] == "[DONE]"

    on_stage(tmp_path, play)


def test_a_gateway_gets_the_figures_as_a_comment_before_the_end(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        body = msgspec.json.encode({"model": MODEL, "prompt": "hi", "stream": True})
        headers = {**JSON, "x-cortex-usage": "1"}
        answer = await stage.ask("POST", PATH, body=body, headers=headers)
        comment, done = answer.body.decode().split("\n\n")[-3:-1]
        assert json.loads(comment.removeprefix(": usage "))["completion_tokens"] == 8
        assert done == "data: [DONE]"

    on_stage(tmp_path, play)


@pytest.mark.parametrize("prompt", ["hi", [104, 105]])
def test_an_echo_begins_with_the_prompt(tmp_path: Path, prompt: Any) -> None:
    async def play(stage: Stage) -> None:
        whole = (await ask(stage, prompt, echo=True, max_tokens=4)).json
        assert whole["choices"][0]["text"] == "hiecho"
        streamed = frames(
            (await ask(stage, prompt, echo=True, max_tokens=4, stream=True)).body
        )
        assert streamed[0]["choices"][0]["text"] == "hi"
        assert text_of(streamed) == "hiecho"

    on_stage(tmp_path, play)


def test_logprobs_of_prompt_and_answer_stand_side_by_side(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        scored(device_of(stage))
        asked = {"echo": True, "logprobs": 1, "max_tokens": 3}
        choice = (await ask(stage, "abcd", **asked)).json["choices"][0]
        assert choice["text"] == "abcdok!"
        told = choice["logprobs"]
        assert told["tokens"] == ["a", "b", "c", "d", "o", "k", "!"]
        assert told["text_offset"] == [0, 1, 2, 3, 4, 5, 6]
        own = [None, *[-ord(c) / 8 for c in "bcd"], -0.25, -0.25, -0.25]
        assert told["token_logprobs"] == own
        assert told["top_logprobs"][:2] == [None, {"b": -12.25}]

        chunks = frames((await ask(stage, "abcd", **asked, stream=True)).body)
        bodies = [c["choices"][0]["logprobs"] for c in chunks[:-1]]
        together = [b for b in bodies if b]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert sum([body[name] for body in together], []) == told[name]

        plain = (await ask(stage, "abcd", logprobs=0, max_tokens=3)).json
        told = plain["choices"][0]["logprobs"]
        assert (told["tokens"], told["top_logprobs"]) == (["o", "k", "!"], None)
        assert told["text_offset"] == [0, 1, 2]
        assert submits(stage)[-1].sampling.prompt_logprobs == -1

    on_stage(tmp_path, play)


@pytest.mark.parametrize("stream", [False, True])
def test_no_tokens_and_an_echo_give_the_scores_of_the_prompt_alone(
    tmp_path: Path, stream: bool
) -> None:
    async def play(stage: Stage) -> None:
        scored(device_of(stage))
        asked = {"echo": True, "logprobs": 0, "max_tokens": 0, "stream": stream}
        answer = await ask(stage, "abc", **asked)
        document = frames(answer.body)[0] if stream else answer.json
        choice = document["choices"][0]
        assert choice["text"] == "abc"
        assert choice["logprobs"]["token_logprobs"] == [None, -12.25, -12.375]
        assert submits(stage)[0].max_tokens == 0
        if stream:
            finishes = [
                c["choices"][0]["finish_reason"] for c in frames(answer.body)[:-1]
            ]
            assert finishes == [None, "length"]

    on_stage(tmp_path, play)


def test_prompt_logprobs_come_by_id(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        scored(device_of(stage))
        asked = {"prompt_logprobs": 2, "max_tokens": 1}
        answer = await ask(stage, "ab", **asked)
        assert answer.status == 200, answer.body + stage.log.getvalue().encode()
        choice = answer.json["choices"][0]
        assert choice["text"] == "o"
        assert choice["logprobs"] is None
        first, second = choice["prompt_logprobs"]
        assert first is None
        assert second["98"] == {"logprob": -12.25, "rank": 1, "decoded_token": "b"}
        assert second["90"]["rank"] == 2

    on_stage(tmp_path, play)


def test_stop_strings_seeds_and_biases_are_those_of_a_chat(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        fields = {"stop": "o: h", "seed": 7, "logit_bias": {"65": 2}, "top_k": 3}
        answer = await ask(stage, ["hi", "ho"], **fields)
        choice = answer.json["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == ("ech", "stop")
        for submit in submits(stage):
            assert (submit.seed, submit.sampling.top_k) == (7, 3)
            assert submit.sampling.logit_bias == ((65, 2.0),)

    on_stage(tmp_path, play)


def test_a_shape_of_the_answer_reaches_the_device_as_a_grammar(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        await ask(stage, ["a", "b"], guided_regex="[ab]+")
        assert [s.grammar for s in submits(stage)] == ['{"regex":"[ab]+"}'] * 2
        refused = await ask(stage, guided_regex="[")
        assert (refused.status, refused.json["error"]["param"]) == (400, "guided_regex")

    on_stage(tmp_path, play)


def test_s09_a_client_that_leaves_cancels_each_of_its_sequences(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        device = device_of(stage)
        device.on_submit = lambda submit: device.begin(submit, "abc")
        client = asyncio.ensure_future(ask(stage, ["a", "b"], n=2, stream=True))
        await until(lambda: len(submits(stage)) == 4)
        client.cancel()
        await until(lambda: len(set(device.cancelled)) == 4)
        assert set(device.cancelled) == {s.id for s in submits(stage)}

    on_stage(tmp_path, play)


def test_an_error_in_mid_stream_is_an_event_and_before_it_a_status(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        device = device_of(stage)

        def fail(submit: Submit) -> None:
            if submit.ids == (98,):
                device.begin(submit, "abc")
            else:
                device.end.send(Accepted(submit.id, 0, 0))
            wire = error_for("nan_logits", "the model computed NaN").to_wire()
            device.end.send(Failed(submit.id, wire))

        device.on_submit = fail
        whole = await ask(stage, "b")
        assert (whole.status, whole.json["error"]["code"]) == (500, "nan_logits")
        refused = await ask(stage, ["a", "b"], stream=True)
        assert refused.status == 500

        device.on_submit = lambda submit: device.begin(submit, "abc")
        streaming = asyncio.ensure_future(ask(stage, "b", stream=True))
        await until(lambda: len(submits(stage)) > 3)
        await asyncio.sleep(0.05)
        last = submits(stage)[-1]
        wire = error_for("nan_logits", "the model computed NaN").to_wire()
        device.end.send(Failed(last.id, wire))
        chunks = frames((await streaming).body)
        assert text_of(chunks[:-1]) == "abc"
        assert chunks[-1]["error"]["code"] == "nan_logits"

    on_stage(tmp_path, play)


def test_what_cannot_be_served_is_refused_before_the_device(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        refusals: list[tuple[dict[str, Any], int, str]] = [
            ({"prompt": ""}, 400, "prompt"),
            ({"prompt": [258]}, 400, "prompt[0]"),
            ({"prompt": ["a"] * 9}, 400, "n"),
            ({"prompt": "x" * 8192}, 400, "prompt"),
            ({"prompt": "a", "suffix": "b"}, 400, "suffix"),
            ({"prompt": "a", "model": "nope"}, 404, "model"),
        ]
        for fields, status, param in refusals:
            answer = await stage.post(PATH, **fields)
            assert (answer.status, answer.json["error"]["param"]) == (status, param)
        assert submits(stage) == []
        assert (await stage.ask("GET", PATH)).status == 405

    on_stage(tmp_path, play)


def test_s22_a_batch_that_finds_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        device = device_of(stage)
        device.on_submit = lambda submit: device.begin(submit, "abc")
        streaming = asyncio.ensure_future(ask(stage, ["a"] * 5, stream=True))
        await until(lambda: len(submits(stage)) == 5)
        full = await ask(stage, ["b"] * 5)
        assert (full.status, full.json["error"]["code"]) == (429, "queue_full")
        assert len(submits(stage)) == 5
        streaming.cancel()
        await until(lambda: len(set(device.cancelled)) == 5)

    on_stage(tmp_path, play)
