"""What the node is and has: /version /discovery /health /models and the OpenAI list.

Front-end worker. Every answer is cut from the facts that the worker holds; nothing here
waits (S24).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ipc.errors import error_for
from neurond.frontend import views
from neurond.frontend.node import Facts, Node
from neurond.serving.edge import Request, Response


def _send(resp: Response, document: Facts) -> None:
    resp.content_type = "application/json"
    resp.data = msgspec.json.encode(document)


def _facts(node: Node) -> Facts:
    if not node.facts:
        raise error_for("overloaded", "the node is starting")
    return node.facts


def _model(node: Node, model: str) -> Facts:
    facts = node.model(model)
    if facts is None:
        _facts(node)
        words = f"model {model} does not exist here; GET /v1/models lists what does"
        raise error_for("model_not_found", words, param="model")
    return facts


class VersionResource:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def on_get(self, _req: Request, resp: Response) -> None:
        _send(resp, views.version(_facts(self._node)))

    on_head = on_get


class DiscoveryResource:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def on_get(self, _req: Request, resp: Response) -> None:
        _send(resp, views.discovery(_facts(self._node)))

    on_head = on_get


class HealthResource:
    """200 while the node serves, else 503 with the same document."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def on_get(self, _req: Request, resp: Response) -> None:
        facts = _facts(self._node)
        _send(resp, views.health(facts))
        if facts["state"] not in views.HEALTHY:
            resp.status = 503
            resp.set_header("retry-after", "1")

    on_head = on_get


class ModelsResource:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def on_get(self, req: Request, resp: Response) -> None:
        facts = _facts(self._node)
        tag = views.etag(facts)
        resp.set_header("etag", tag)
        if views.matches(req.get_header("if-none-match"), tag):
            resp.status = 304
            return
        _send(resp, views.models(facts))

    on_head = on_get


class ModelResource:
    """What `view` says of a model's fact; a sink, because an id may have slashes."""

    def __init__(self, node: Node, view: Callable[[Facts], Any]) -> None:
        self._node = node
        self._view = view

    async def on_request(
        self, req: Request, resp: Response | None, **path: Any
    ) -> None:
        if resp is None:
            return  # a websocket: Falcon refuses it
        if req.method not in ("GET", "HEAD"):
            raise error_for("method_not_allowed", "the path has no such method")
        _send(resp, self._view(_model(self._node, path["model"])))


class OpenaiModelsResource:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def on_get(self, _req: Request, resp: Response) -> None:
        _send(resp, views.openai_models(_facts(self._node)))

    on_head = on_get


class OpenaiModelResource:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def on_get(self, _req: Request, resp: Response, model: str) -> None:
        fact = _model(self._node, model)
        _send(resp, views.openai_model(fact, _facts(self._node)))

    on_head = on_get
