"""POST of every endpoint that a node answers: handed to one, byte for byte.

Gateway worker.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import falcon

from cortexd.peek import peek
from cortexd.relay import Ask, Relay
from cortexd.series import Account, Accounts
from cortexd.stream import RelayStream
from ipc.errors import ServiceError
from neurond.serving.body import require_json
from neurond.serving.edge import Request, Response, exchange_of
from neurond.serving.principal import principal_of


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`name` is its label in metrics. `on_device`: the model has to be loaded; else
    any node that knows it can answer."""

    name: str
    path: str
    on_device: bool = True


CHAT = Endpoint("chat", "/v1/chat/completions")
COMPLETIONS = Endpoint("completions", "/v1/completions")
EMBEDDINGS = Endpoint("embeddings", "/v1/embeddings")
TOKENIZE = Endpoint("tokenize", "/tokenize", on_device=False)
DETOKENIZE = Endpoint("detokenize", "/detokenize", on_device=False)


class RelayedResource:
    def __init__(
        self, endpoint: Endpoint, relay: Relay, accounts: Accounts, *, body_bytes: int
    ) -> None:
        self._endpoint = endpoint
        self._relay = relay
        self._accounts = accounts
        self._body_bytes = body_bytes

    async def on_post(self, req: Request, resp: Response) -> None:
        account = self._accounts.open(self._endpoint.name)
        exchange_of(req).on_close(account.close)
        try:
            await self._answer(req, resp, account)
        except ServiceError as error:
            account.end_with(error.status)
            raise
        except asyncio.CancelledError:
            account.end("client_gone")
            raise

    async def _answer(self, req: Request, resp: Response, account: Account) -> None:
        answer = await self._relay.answer(await self._ask(req), account)
        if isinstance(answer, RelayStream):
            exchange_of(req).on_close(answer.release)
            resp.content_type = "text/event-stream"
            resp.set_header("cache-control", "no-cache")
            resp.stream = answer
            return
        resp.status = answer.status
        resp.content_type = falcon.MEDIA_JSON
        resp.data = answer.body
        if answer.retry_after:
            resp.set_header("retry-after", answer.retry_after)
        account.end_with(answer.status, answer.usage)

    async def _ask(self, req: Request) -> Ask:
        """Raises ClientError."""
        require_json(req.headers_lower)
        exchange = exchange_of(req)
        body = await exchange.body.read(req.headers_lower, limit_bytes=self._body_bytes)
        seen = peek(body)
        return Ask(
            model=seen.model,
            stream=seen.stream,
            path=self._endpoint.path,
            request_id=exchange.request_id,
            body_for=seen.body_for,
            on_device=self._endpoint.on_device,
            principal=principal_of(req, trusts_header=False),
        )
