"""Documents, orders and events of a worker, from the facts and to the supervisor."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ipc.errors import error_for
from tests.neurond.frontend.stage import JSON, MODEL, Stage, on_stage, until


def test_a_configured_token_guards_every_path(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        for path in ("/health", "/models", "/v1/models", "/events"):
            assert (await stage.ask("GET", path)).status == 401
        assert (
            await stage.chat("hi", headers={"authorization": "Bearer x"})
        ).status == 401
        right = {"authorization": "Bearer secret"}
        assert (await stage.chat("hi", headers=right)).status == 200

    on_stage(tmp_path, play, token="secret")


def test_the_nodes_documents_hide_folders_and_the_hosts_name(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        await stage.publish(error=["load_failed", "no", None, None, {}, ["E: /secret"]])
        paths = ["/version", "/discovery", "/health", "/models", "/v1/models"]
        paths += [f"/v1/models/{MODEL}", f"/models/{MODEL}/capabilities"]
        paths += [f"/models/{MODEL}"]
        for path in paths:
            answer = await stage.ask("GET", path)
            assert answer.status == 200, path
            assert str(tmp_path).encode() not in answer.body
            assert b"secret" not in answer.body

    on_stage(tmp_path, play)


def test_models_are_tagged_and_a_known_tag_costs_nothing(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        first = await stage.ask("GET", "/models")
        tag = first.headers["etag"]
        assert tag == '"b.1"'
        again = await stage.ask("GET", "/models", headers={"if-none-match": tag})
        assert (again.status, again.body) == (304, b"")
        await stage.publish(status="unloaded")
        moved = await stage.ask("GET", "/models", headers={"if-none-match": tag})
        assert moved.json["models"][0]["status"] == "unloaded"

    on_stage(tmp_path, play)


def test_s33_a_model_stays_listed_in_every_state(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        for status in ("converting", "loading", "recovering", "failed", "unloaded"):
            await stage.publish(status=status)
            data = (await stage.ask("GET", "/v1/models")).json["data"]
            assert [model["id"] for model in data] == [MODEL]

    on_stage(tmp_path, play)


def test_a_model_id_may_have_slashes(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        await stage.publish(id="org/name")
        one = await stage.ask("GET", "/models/org/name/capabilities")
        assert one.json["capabilities"] == {"chat": True}
        assert (await stage.ask("GET", "/v1/models/org/name")).json["id"] == "org/name"
        whole = (await stage.ask("GET", "/models")).json["models"][0]
        assert (await stage.ask("GET", "/models/org/name")).json == whole
        assert (await stage.ask("GET", "/models/org/other")).status == 404
        assert (await stage.ask("POST", "/models/org/name")).status == 405
        assert (await stage.ask("GET", "/v1/models/other")).status == 404
        assert (await stage.ask("POST", "/models/x/capabilities")).status == 405

    on_stage(tmp_path, play)


@pytest.mark.parametrize(
    ("state", "status"),
    [("ready", 200), ("impaired", 200), ("starting", 503), ("draining", 503)],
)
def test_health_is_the_nodes_state(tmp_path: Path, state: str, status: int) -> None:
    async def play(stage: Stage) -> None:
        await stage.publish(node_state=state)
        answer = await stage.ask("GET", "/health")
        assert (answer.status, answer.json["state"]) == (status, state)

    on_stage(tmp_path, play)


def test_load_and_unload_are_orders_to_the_supervisor(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        fact = stage.facts["models"][0]
        done = {"status": "loaded", "model": fact, "version": "b.1"}
        stage.answers = {
            "load": done,
            "unload": {"status": "unloaded", "version": "b.1"},
        }
        body = json.dumps({"model_id": "m", "dtype": "bf16", "pinned": True}).encode()
        headers = {**JSON, "if-match": '"b.1"'}
        loaded = await stage.ask("POST", "/models/load", body=body, headers=headers)
        assert loaded.status == 200
        assert loaded.headers["etag"] == '"b.1"'
        assert "folder" not in loaded.json["model"]
        sent = {"model_id": "m", "dtype": "bf16", "pinned": True, "wait": True}
        assert stage.orders == [("load", {**sent, "if_match": "b.1"})]
        unloaded = await stage.ask(
            "POST", "/models/unload", body=b'{"model_id": "m"}', headers=JSON
        )
        assert unloaded.json["status"] == "unloaded"
        stage.answers["load"] = error_for("version_conflict", "moved")
        moved = await stage.ask("POST", "/models/load", body=body, headers=headers)
        assert moved.status == 412

    on_stage(tmp_path, play)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "model_id"),
        ({"model_id": 5}, "model_id"),
        ({"model_id": "m", "context": -1}, "context"),
        ({"model_id": "m", "devices": "gpu-0"}, "devices"),
        ({"model_id": "m", "pinned": 1}, "pinned"),
    ],
)
def test_a_bad_order_never_reaches_the_supervisor(
    tmp_path: Path, body: Any, param: str
) -> None:
    async def play(stage: Stage) -> None:
        data = json.dumps(body).encode()
        answer = await stage.ask("POST", "/models/load", body=data, headers=JSON)
        assert (answer.status, answer.json["error"]["param"]) == (400, param)
        assert stage.orders == []

    on_stage(tmp_path, play)


def test_events_are_streamed_missed_ones_first_and_each_once(tmp_path: Path) -> None:
    def event(number: int) -> dict[str, Any]:
        return {"id": number, "time_s": 1.0, "kind": "model.loaded", "model": "m"}

    async def play(stage: Stage) -> None:
        stage.answers["events"] = {"events": [event(4), event(5)]}
        got: list[bytes] = []

        async def read() -> None:
            headers = {"last-event-id": "3"}
            stream = stage.ask("GET", "/events", headers=headers, on_chunk=got.append)
            await stream

        reading = asyncio.ensure_future(read())
        await until(lambda: b"id: 5" in b"".join(got))
        stage.control.publish("events", event(5))
        stage.control.publish("events", event(6))
        await until(lambda: b"id: 6" in b"".join(got))
        reading.cancel()
        body = b"".join(got)
        assert [body.count(b"id: %d\n" % n) for n in (4, 5, 6)] == [1, 1, 1]
        assert stage.orders == [("events", {"since": 3, "limit": 1000})]

    on_stage(tmp_path, play)


def test_a_supervisor_that_says_nothing_yet_is_503_not_404(tmp_path: Path) -> None:
    from neurond.frontend import admission

    refusal = admission.refusal("", "m", None)
    assert refusal is not None
    assert refusal.status == 503


def test_no_module_of_the_front_end_imports_torch() -> None:
    code = (
        "import pkgutil, importlib, sys, neurond.serving, neurond.frontend\n"
        "for p in (neurond.serving, neurond.frontend):\n"
        "    for m in pkgutil.iter_modules(p.__path__):\n"
        "        if m.name != '__main__':\n"
        "            importlib.import_module(f'{p.__name__}.{m.name}')\n"
        "import transformers.utils.chat_template_utils\n"
        "sys.exit('torch' in sys.modules or 'uvicorn' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
