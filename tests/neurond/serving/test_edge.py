"""Errors leave in one shape, with an id and nothing internal (S41, S51)."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import falcon.asgi
import pytest

from ipc.errors import TABLE, error_for
from ipc.journal import Journal
from neurond.serving import edge
from tests.neurond.serving.asgi import Answer, exchange

SECRET = "/var/lib/secret at 0x7fff on host.internal"


class Resource:
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.closed = 0

    async def on_get(self, req: edge.Request, resp: edge.Response) -> None:
        edge.exchange_of(req).on_close(self.note_close)
        if self.error is not None:
            raise self.error
        resp.media = {"ok": True}

    async def on_post(self, req: edge.Request, resp: edge.Response) -> None:
        resp.media = await edge.read_json(req, limit_bytes=50)

    def note_close(self) -> None:
        self.closed += 1


class Site:
    def __init__(self) -> None:
        self.resource = Resource()
        self.log = io.StringIO()
        app: falcon.asgi.App[Any, Any] = falcon.asgi.App()
        app.add_route("/x", self.resource)
        journal = Journal("test", stream=self.log, mode="text")
        self.edge = edge.Edge(app, journal)

    def ask(self, method: str = "GET", path: str = "/x", **more: Any) -> Answer:
        return asyncio.run(exchange(self.edge, method, path, **more))

    def fail(self, error: Exception) -> Answer:
        self.resource.error = error
        return self.ask()


@pytest.fixture
def site() -> Site:
    return Site()


JSON = {"content-type": "application/json"}


def test_every_answer_carries_the_requests_id(site: Site) -> None:
    assert site.ask().headers["x-request-id"].startswith("req_")
    assert site.ask(path="/nowhere").headers["x-request-id"].startswith("req_")
    given = site.ask(headers={"x-request-id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"


@pytest.mark.parametrize("given", ["a b", "x" * 65, "", "é", "a\tb", '"'])
def test_a_callers_id_that_is_not_harmless_is_replaced(site: Site, given: str) -> None:
    answer = site.ask(headers={"x-request-id": given})
    assert answer.headers["x-request-id"].startswith("req_")


def test_s41_a_bug_gives_the_client_an_id_and_the_journal_the_cause(site: Site) -> None:
    bug = RuntimeError(SECRET)
    bug.__cause__ = OSError("deeper")
    answer = site.fail(bug)
    assert answer.status == 500
    assert answer.json["error"]["code"] == "internal_error"
    request_id = answer.json["error"]["request_id"]
    assert request_id == answer.headers["x-request-id"]
    assert "secret" not in answer.body.decode()
    line = site.log.getvalue()
    assert request_id in line
    assert SECRET in line
    assert "OSError: deeper" in line


def test_s51_the_chain_of_a_typed_error_stays_inside(site: Site) -> None:
    answer = site.fail(error_for("nan_logits", "NaN", chain=(f"Boom: {SECRET}",)))
    assert "secret" not in answer.body.decode()
    assert "secret" in site.log.getvalue()


@pytest.mark.parametrize("code", TABLE)
def test_every_error_of_the_table_has_the_shape_that_sdks_read(
    site: Site, code: str
) -> None:
    answer = site.fail(error_for(code, "words", param="model", fields={"percent": 5}))
    row = TABLE[code]
    error = answer.json["error"]
    assert answer.status == row.status
    assert (error["message"], error["type"]) == ("words", row.openai_type)
    assert (error["code"], error["param"], error["percent"]) == (code, "model", 5)
    assert answer.headers["content-type"].startswith("application/json")
    if row.status in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1


def test_retry_after_is_whole_seconds_rounded_up(site: Site) -> None:
    answer = site.fail(error_for("model_loading", "x", retry_after_s=2.1))
    assert answer.headers["retry-after"] == "3"


def test_fields_of_an_error_never_hide_its_core(site: Site) -> None:
    answer = site.fail(error_for("queue_full", "words", fields={"code": "x"}))
    assert answer.json["error"]["code"] == "queue_full"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/x", 405, "method_not_allowed"),
    ],
)
def test_the_frameworks_own_refusals_have_our_shape(
    site: Site, method: str, path: str, status: int, code: str
) -> None:
    answer = site.ask(method, path)
    assert (answer.status, answer.json["error"]["code"]) == (status, code)
    assert "GET" in answer.headers.get("allow", "GET")


def test_a_client_error_is_no_news_for_the_journal(site: Site) -> None:
    site.fail(error_for("model_not_found", "x"))
    assert site.log.getvalue() == ""


def test_what_an_exchange_holds_is_released_once_also_after_an_error(
    site: Site,
) -> None:
    site.ask()
    assert site.resource.closed == 1
    site.fail(RuntimeError("x"))
    assert site.resource.closed == 2


def test_a_websocket_is_closed_and_no_bug(site: Site) -> None:
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/x", "headers": [], "query_string": b""}
    asyncio.run(site.edge(scope, receive, send))
    assert sent == [{"type": "websocket.close"}]
    assert site.log.getvalue() == ""


def test_json_comes_in_and_anything_else_does_not(site: Site) -> None:
    post: dict[str, Any] = {"method": "POST", "headers": JSON}
    assert site.ask(**post, body=b'{"a": 1}').json == {"a": 1}
    assert site.ask(**post, body=b"{").json["error"]["column"] == 2
    assert site.ask(**post, body=b"x" * 51).status == 413
    assert site.ask("POST", body=b"{}").status == 415
