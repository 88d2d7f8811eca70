"""GET /health and /version.

Gateway worker. Nothing here waits or asks anybody (S24).
"""

from __future__ import annotations

import platform
from collections.abc import Callable

import falcon
import msgspec

import ipc
from cortexd.documents import Documents
from neurond.serving.edge import Request, Response


class HealthResource:
    """200 while some node is up, else 503 with the same document."""

    def __init__(self, documents: Callable[[], Documents]) -> None:
        self._documents = documents

    async def on_get(self, _req: Request, resp: Response) -> None:
        documents = self._documents()
        resp.content_type = falcon.MEDIA_JSON
        resp.data = documents.health
        if not documents.is_healthy:
            resp.status = 503
            resp.set_header("retry-after", "1")

    on_head = on_get


class VersionResource:
    def __init__(self, gateway: str) -> None:
        versions = {"cortex": ipc.__version__, "python": platform.python_version()}
        self._body = msgspec.json.encode({"gateway": gateway, **versions})

    async def on_get(self, _req: Request, resp: Response) -> None:
        resp.content_type = falcon.MEDIA_JSON
        resp.data = self._body

    on_head = on_get
