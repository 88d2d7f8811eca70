"""GET /v1/models and /v1/models/{id}: what clients may ask for.

Gateway worker. The bytes lie ready (S24).
"""

from __future__ import annotations

from collections.abc import Callable

import falcon

from cortexd.documents import Documents
from ipc.errors import error_for
from neurond.serving.edge import Request, Response


class ModelsResource:
    def __init__(self, documents: Callable[[], Documents]) -> None:
        self._documents = documents

    async def on_get(self, _req: Request, resp: Response) -> None:
        resp.content_type = falcon.MEDIA_JSON
        resp.data = self._documents().model_list

    on_head = on_get


class ModelResource:
    """An id may have slashes in it."""

    def __init__(self, documents: Callable[[], Documents]) -> None:
        self._documents = documents

    async def on_get(self, _req: Request, resp: Response, model: str) -> None:
        entry = self._documents().models.get(model)
        if entry is None:
            words = "there is no such model; GET /v1/models lists what there is"
            raise error_for("model_not_found", words, param="model")
        resp.content_type = falcon.MEDIA_JSON
        resp.data = entry

    on_head = on_get
