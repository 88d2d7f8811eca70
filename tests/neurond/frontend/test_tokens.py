"""/tokenize and /detokenize through a worker: loaded models, others, refusals."""

from __future__ import annotations

from pathlib import Path

from ipc.errors import ClientError
from neurond.device import fakemodel
from neurond.serving.hygiene import Rule
from tests.neurond.frontend.stage import Stage, on_stage

HI = [{"role": "user", "content": "hi"}]


def test_a_loaded_model_counts_without_asking_supervisor_or_device(
    tmp_path: Path,
) -> None:
    async def play(stage: Stage) -> None:
        answer = await stage.post("/tokenize", prompt="hi")
        assert answer.status == 200
        assert answer.json == {
            "count": 2,
            "max_model_len": 8192,
            "tokens": [104, 105],
            "token_strs": None,
        }
        back = await stage.post("/detokenize", tokens=[104, 105])
        assert back.json == {"prompt": "hi"}
        assert stage.orders == []

    on_stage(tmp_path, play, device=False)


def test_messages_count_what_the_chat_says_that_it_used(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        counted = (await stage.post("/tokenize", messages=HI)).json["count"]
        chatted = (await stage.chat("hi")).json["usage"]["prompt_tokens"]
        assert counted == chatted

    on_stage(tmp_path, play)


def test_s75_noise_that_a_chat_leaves_out_is_not_counted(tmp_path: Path) -> None:
    noisy = [{"role": "system", "content": "now=123\nbe kind"}, *HI]
    rules = (Rule("clock", r"\Anow=\d{1,9}\n"),)

    async def play(stage: Stage) -> None:
        counted = (await stage.post("/tokenize", messages=noisy)).json["count"]
        answer = await stage.post("/v1/chat/completions", messages=noisy)
        assert counted == answer.json["usage"]["prompt_tokens"]
        clean = [{"role": "system", "content": "be kind"}, *HI]
        told = await stage.post("/tokenize", messages=clean)
        assert told.json["count"] == counted

    on_stage(tmp_path, play, hygiene=rules)


def test_a_model_that_is_not_loaded_is_read_from_where_the_supervisor_says(
    tmp_path: Path,
) -> None:
    folder = fakemodel.build(tmp_path / "other", context=77)

    async def play(stage: Stage) -> None:
        await stage.publish(status="unloaded", context=None)
        stage.answers["files"] = {"folder": str(folder)}
        for _ in range(2):
            answer = await stage.post("/tokenize", prompt="hi")
            assert (answer.json["count"], answer.json["max_model_len"]) == (2, 77)
        assert (await stage.post("/detokenize", tokens=[65])).json == {"prompt": "A"}
        assert stage.orders == [("files", {"model_id": "tiny"})] * 3

    on_stage(tmp_path, play, device=False)


def test_files_that_are_not_there_are_the_supervisors_answer(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        await stage.publish(status="unloaded")
        stage.answers["files"] = ClientError("gone", code="model_source_invalid")
        answer = await stage.post("/tokenize", prompt="hi")
        assert (answer.status, answer.json["error"]["message"]) == (422, "gone")
        stage.answers["files"] = {"folder": str(tmp_path / "nowhere")}
        answer = await stage.post("/tokenize", prompt="hi")
        assert answer.json["error"]["code"] == "load_failed"
        assert str(tmp_path) not in answer.body.decode()

    on_stage(tmp_path, play, device=False)


def test_unknown_models_and_bad_bodies_are_refused(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        for path in ("/tokenize", "/detokenize"):
            fields = {"prompt": "a", "tokens": [1]}
            unknown = await stage.post(path, **{**fields, "model": "nope"})
            assert unknown.status == 404
            assert unknown.json["error"]["code"] == "model_not_found"
            long = await stage.post(path, **fields, more="x" * 100_000)
            assert long.status == 413
            assert (await stage.ask("POST", path, body=b"{}")).status == 415
            assert (await stage.ask("GET", path)).status == 405
        beyond = await stage.post("/detokenize", tokens=[1, 258])
        assert (beyond.status, beyond.json["error"]["param"]) == (400, "tokens[1]")

    on_stage(tmp_path, play, device=False)


def test_a_long_text_gives_the_same_ids(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        text = "é" * 20_000
        ids = (await stage.post("/tokenize", prompt=text)).json["tokens"]
        assert bytes(ids) == text.encode()

    on_stage(tmp_path, play, device=False)
