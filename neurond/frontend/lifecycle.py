"""POST /models/load and /models/unload: orders to the supervisor, over HTTP.

Front-end worker. Nothing is decided here: the order goes down control.sock and its
outcome comes back, with a deadline. `?wait=0` answers as soon as the order is taken.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ipc.errors import ClientError
from neurond.frontend import views
from neurond.frontend.node import Facts, Node
from neurond.serving import fields
from neurond.serving.edge import Request, Response, read_json

_MAX_BODY_BYTES = 1 << 20
_MAX_CHARS = 1024
_NOT_YET: dict[str, tuple[object, ...]] = {
    "tensor_parallel": (None, 1),
    "evict": (None, []),
}
"""Fields that would change what is done, and the values that ask for nothing."""
_GRACE_S = 5.0
"""The supervisor's own deadline comes first, and with a better reason."""


class LifecycleResource:
    """`op` is the control operation: load or unload."""

    def __init__(self, node: Node, op: str, *, timeout_s: float) -> None:
        self._node = node
        self._op = op
        self._timeout_s = timeout_s + _GRACE_S

    async def on_post(self, req: Request, resp: Response) -> None:
        body = await read_json(req, limit_bytes=_MAX_BODY_BYTES)
        read = load_args if self._op == "load" else unload_args
        wait = req.get_param("wait") not in ("0", "false")
        args = {**read(body), "wait": wait}
        if_match = req.get_header("if-match")
        if if_match is not None and if_match.strip() != "*":
            args["if_match"] = views.bare_tag(if_match)
        answer = await self._node.order(self._op, args, self._timeout_s)
        await self._node.caught_up(views.bare_tag(str(answer.get("version", ""))))
        self._send(resp, answer, wait=wait)

    def _send(self, resp: Response, answer: Facts, *, wait: bool) -> None:
        fact = answer.get("model")
        shown = {**answer, "model": views.model(fact)} if fact else answer
        resp.status = 200 if wait else 202
        resp.content_type = "application/json"
        resp.data = msgspec.json.encode(shown)
        if answer.get("version"):
            resp.set_header("etag", f'"{views.bare_tag(str(answer["version"]))}"')


def load_args(body: object) -> dict[str, Any]:
    """The arguments of a load. Raises ClientError naming the field."""
    document = _object(body)
    known = unload_args(document)
    for name in ("source", "dtype", "quant"):
        known[name] = fields.text(document, name, max_chars=_MAX_CHARS)
    known["context"] = fields.integer(document, "context", 0, 1 << 31)
    known["priority"] = fields.integer(document, "priority", 0, 1 << 31)
    if document.get("pinned") is not None:
        known["pinned"] = fields.flag(document, "pinned")
    known["devices"] = _devices(document.get("devices"))
    for name in _NOT_YET:
        if document.get(name) not in _NOT_YET[name]:
            words = f"{name} is not supported yet"
            raise ClientError(words, code="unsupported_parameter", param=name)
    return {name: value for name, value in known.items() if value is not None}


def unload_args(body: object) -> dict[str, Any]:
    model = fields.text(_object(body), "model_id", max_chars=_MAX_CHARS)
    if model is None:
        raise ClientError("model_id is required", param="model_id")
    return {"model_id": model}


def _object(body: object) -> dict[str, Any]:
    if type(body) is not dict:
        raise ClientError("the body must be a JSON object")
    return body


def _devices(value: object) -> list[str] | None:
    if value is None:
        return None
    if type(value) is not list or not all(type(item) is str for item in value):
        raise fields.invalid("devices", "an array of device names", value)
    return value
