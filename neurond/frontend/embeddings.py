"""POST /v1/embeddings: from a list of inputs to a list of vectors.

Front-end worker. There is no stream, so every error is a status. The order of the steps
is the order of the refusals: body, fields, model, dimensions, tokens, device.

Invariant: what was submitted is cancelled when the exchange ends, whatever ends it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from ipc.errors import ServiceError
from ipc.messages import Submit
from neurond.frontend import admission, metrics
from neurond.frontend.intake import Intake, new_embedding
from neurond.frontend.node import Node
from neurond.serving import embeddings
from neurond.serving.devices import DeviceLine
from neurond.serving.edge import Request, Response, exchange_of, read_json
from neurond.serving.embeddings import EmbeddingRequest
from neurond.serving.gathering import Gathering
from neurond.serving.library import Library
from neurond.serving.requests import RequestTable

_TOKENIZER_S = 1.0
_SILENCE_S = 60.0
"""A forward of long texts may take seconds on a CPU, never a minute."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Inputs that may be submitted, where, and how many dimensions to keep."""

    request: EmbeddingRequest
    submits: list[Submit]
    dimensions: int | None
    line: DeviceLine


class EmbeddingsResource:
    def __init__(
        self,
        intake: Intake,
        node: Node,
        library: Library,
        table: RequestTable,
        *,
        body_bytes: int,
    ) -> None:
        self._intake = intake
        self._node = node
        self._library = library
        self._table = table
        self._body_bytes = body_bytes

    async def on_post(self, req: Request, resp: Response) -> None:
        arrived_s = time.monotonic()
        try:
            prepared = await self._prepare(req)
            gathering = self._gathering(prepared)
            line = prepared.line
            gathering.start(prepared.submits, line.device, line)
        except ServiceError as error:
            metrics.refused(error.code)
            raise
        model = prepared.request.model
        meter = metrics.RequestMeter(model, arrived_s)
        exchange = exchange_of(req)
        exchange.on_close(gathering.close)
        exchange.on_close(lambda: meter.end(gathering, time.monotonic()))
        decision_s = admission.decision_s(self._node.device_kind(line.device))
        vectors = await gathering.result(decision_s=decision_s, silence_s=_SILENCE_S)
        resp.content_type = "application/json"
        resp.data = embeddings.answer(model, vectors, gathering.usage.prompt)

    async def _prepare(self, req: Request) -> Prepared:
        """Raises ServiceError."""
        body = await read_json(req, limit_bytes=self._body_bytes)
        request = embeddings.parse_embeddings(body)
        fact = self._intake.admit(request.model, "embedding")
        dimensions = embeddings.check_dimensions(
            request.dimensions, int(fact["dimensions"]), may_cut=fact["matryoshka"]
        )
        served = await self._library.get(request.model, timeout_s=_TOKENIZER_S)
        window = int(fact["context"])
        ids = await self._library.work(
            lambda: embeddings.input_ids(request, served.tokenizer, window=window),
            size=request.num_chars,
        )
        principal = self._intake.principal(req)
        submits = [
            new_embedding(request.model, one, principal=principal) for one in ids
        ]
        line = self._intake.line(fact, submits)
        return Prepared(request, submits, dimensions, line)

    def _gathering(self, prepared: Prepared) -> Gathering:
        as_base64, dimensions = prepared.request.as_base64, prepared.dimensions

        def encode(values: bytes) -> bytes:
            return embeddings.vector_json(
                values, dimensions=dimensions, as_base64=as_base64
            )

        return Gathering(self._table, encode)
