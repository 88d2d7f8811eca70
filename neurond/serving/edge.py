"""The edge of an HTTP worker: request ids, bodies, and errors as clients see them.

Front-end and gateway workers; wraps a Falcon app. Every error of the system leaves
through here, in the shape of its dialect, with the request's id and nothing internal:
paths, addresses and causes go to the journal under the same id (S41, S51).

    server ─▶ Edge (Exchange per request) ─▶ Falcon app ─▶ resources

Invariant: whatever an exchange holds is released when the exchange ends, also when the
client left while nothing of ours was running.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import falcon
import falcon.asgi
import msgspec

from ipc.errors import ServiceError, cause_chain, error_for
from ipc.journal import Journal
from neurond.serving.body import BodyReader, parse, require_json

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Request = falcon.asgi.Request
Response = falcon.asgi.Response

_KEY = "cortex.exchange"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CODES_BY_STATUS = {
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_media_type",
}
_REPORTED = (500, 502)


class Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Any) -> None:
        self.body = BodyReader(receive, has_body=_has_body(scope))
        self.request_id = _request_id(scope)
        self._closers: list[Callable[[], None]] = []

    def on_close(self, closer: Callable[[], None]) -> None:
        """Have `closer` called when the exchange ends, however it ends."""
        self._closers.append(closer)

    def sender(self, send: Send) -> Send:
        """`send`, with the request's id among the headers of whatever is answered."""
        header = (b"x-request-id", self.request_id.encode())

        async def send_with_id(event: MutableMapping[str, Any]) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event.get("headers", ()), header]
            await send(event)

        return send_with_id

    def close(self) -> None:
        for closer in self._closers:
            closer()
        self._closers.clear()


class Edge:
    """An ASGI app around the Falcon app."""

    def __init__(self, app: falcon.asgi.App[Any, Any], journal: Journal) -> None:
        self._app = app
        self._journal = journal
        app.add_error_handler(Exception, self._on_bug)
        app.add_error_handler(falcon.HTTPError, self._on_http_error)
        app.add_error_handler(ServiceError, self._on_service_error)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # 403: nothing here speaks it
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)  # type: ignore[arg-type]
            return
        exchange = Exchange(scope, receive)
        scope[_KEY] = exchange
        try:
            await self._app(scope, exchange.body.receive, exchange.sender(send))  # type: ignore[arg-type]
        finally:
            exchange.close()

    async def _on_service_error(
        self, req: Request, resp: Response, error: ServiceError, _params: Any
    ) -> None:
        request_id = exchange_of(req).request_id
        report(self._journal, error, request_id)
        render(resp, error, request_id)

    async def _on_http_error(
        self, req: Request, resp: Response, error: falcon.HTTPError, _params: Any
    ) -> None:
        """Falcon's own refusals: no route, wrong method, bad header."""
        render(resp, _from_falcon(error), exchange_of(req).request_id)
        for name, value in dict(error.headers or {}).items():
            resp.set_header(name, value)

    async def _on_bug(
        self, req: Request, resp: Response, error: Exception, _params: Any
    ) -> None:
        request_id = exchange_of(req).request_id
        bug = as_service_error(error)
        report(self._journal, bug, request_id)
        render(resp, bug, request_id)


def exchange_of(req: Request) -> Exchange:
    exchange: Exchange = req.scope[_KEY]
    return exchange


async def read_json(req: Request, *, limit_bytes: int) -> Any:
    """The request's document. Raises ClientError."""
    require_json(req.headers_lower)
    exchange = exchange_of(req)
    return parse(await exchange.body.read(req.headers_lower, limit_bytes=limit_bytes))


def as_service_error(error: Exception) -> ServiceError:
    """A bug of ours as the client may see it; the chain keeps what it was (S06)."""
    if isinstance(error, ServiceError):
        return error
    message = "internal error; the journal holds its cause under this request id"
    return error_for("internal_error", message, chain=cause_chain(error))


def report(journal: Journal, error: ServiceError, request_id: str) -> None:
    """A line for what nobody else has written down; refusals are no news."""
    if error.status not in _REPORTED:
        return
    causes = error.chain or cause_chain(error)[1:]
    journal.error(
        error.message, request=request_id, code=error.code, cause=" <- ".join(causes)
    )


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    """The error in OpenAI's shape."""
    core = {
        "message": error.message,
        "type": error.row.openai_type,
        "param": error.param,
        "code": error.code,
        "request_id": request_id,
    }
    extra = {"retry_after": retry_after(error)} if error.retry_after_s else {}
    return {"error": {**error.fields, **extra, **core}}


def render(resp: Response, error: ServiceError, request_id: str) -> None:
    resp.status = error.status
    resp.content_type = falcon.MEDIA_JSON
    resp.data = msgspec.json.encode(error_body(error, request_id))
    if error.retry_after_s is not None:
        resp.set_header("retry-after", str(retry_after(error)))


def retry_after(error: ServiceError) -> int:
    """Whole seconds, as the header wants them."""
    return max(1, math.ceil(error.retry_after_s or 0))


def _from_falcon(error: falcon.HTTPError) -> ServiceError:
    status = error.status_code
    if status >= 500:
        return as_service_error(error)
    code = _CODES_BY_STATUS.get(status, "invalid_request_error")
    words = {404: "there is no such path", 405: "the path has no such method"}
    return error_for(code, words.get(status) or error.title or "bad request")


def _has_body(scope: Scope) -> bool:
    headers = dict(scope.get("headers", ()))
    length = headers.get(b"content-length", b"0")
    return b"transfer-encoding" in headers or length.strip(b"0") != b""


def _request_id(scope: Scope) -> str:
    """The caller's own id, when it is harmless, else a new one."""
    for name, value in scope.get("headers", ()):
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return f"req_{secrets.token_hex(12)}"
