"""POST /tokenize and /detokenize: for every model whose files the node holds.

Front-end worker. A model that is not loaded has no tokenizer at hand: the supervisor
says where its files are, and the library reads them, within a deadline. No device is
asked.

Invariant: the event loop reads no file and encodes no long text.
"""

from __future__ import annotations

from dataclasses import replace

from ipc.errors import error_for
from neurond.frontend import admission
from neurond.frontend.node import Facts, Node
from neurond.frontend.prompts import Prompts
from neurond.serving import tokens
from neurond.serving.edge import Request, Response, read_json
from neurond.serving.library import Library, ServedModel

_FILES_S = 2.0
_READ_S = 5.0


class Shelf:
    """The tokenizers of a node's models, loaded or not."""

    def __init__(self, node: Node, library: Library) -> None:
        self._node = node
        self.library = library

    async def get(self, model: str) -> tuple[ServedModel, int]:
        """Tokenizer and window. Raises ServiceError."""
        fact = self._fact(model)
        if self.library.has(model):
            served = await self.library.get(model, timeout_s=_READ_S)
        else:
            answer = await self._node.order("files", {"model_id": model}, _FILES_S)
            folder = str(answer["folder"])
            served = await self.library.borrow(model, folder, timeout_s=_READ_S)
        return served, int(fact.get("context") or served.context)

    def _fact(self, model: str) -> Facts:
        """Raises ServiceError where a chat would, as far as the model is named."""
        fact = self._node.model(model)
        if fact is None:
            refusal = admission.refusal(self._node.state, model, None)
            raise refusal or error_for("internal_error", "no model, and no refusal")
        return fact


class TokenizeResource:
    def __init__(self, shelf: Shelf, prompts: Prompts, *, body_bytes: int) -> None:
        self._shelf = shelf
        self._prompts = prompts
        self._body_bytes = body_bytes

    async def on_post(self, req: Request, resp: Response) -> None:
        body = await read_json(req, limit_bytes=self._body_bytes)
        request = tokens.parse_tokenize(body)
        served, window = await self._shelf.get(request.model)
        cleaned = self._prompts.cleaned(request.model, request.messages)
        request = replace(request, messages=cleaned)
        resp.content_type = "application/json"
        resp.data = await self._shelf.library.work(
            lambda: tokens.tokenized(request, served, window),
            size=request.num_bytes,
        )


class DetokenizeResource:
    def __init__(self, shelf: Shelf, *, body_bytes: int) -> None:
        self._shelf = shelf
        self._body_bytes = body_bytes

    async def on_post(self, req: Request, resp: Response) -> None:
        body = await read_json(req, limit_bytes=self._body_bytes)
        request = tokens.parse_detokenize(body)
        served, _ = await self._shelf.get(request.model)
        resp.content_type = "application/json"
        resp.data = await self._shelf.library.work(
            lambda: tokens.detokenized(request, served), size=len(request.ids)
        )
