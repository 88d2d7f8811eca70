"""POST /v1/chat/completions: one request from its body to its last frame.

Front-end worker. Until the device has accepted the request every error is a status;
then a stream's headers go out (the commit point), and errors become events. Without
streaming the status stays open to the end.

Invariant: what was submitted is cancelled when the exchange ends, whatever ends it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ipc.errors import ServiceError
from ipc.journal import Journal
from neurond.frontend import admission, metrics
from neurond.frontend.intake import Intake, Prepared
from neurond.frontend.node import Node
from neurond.frontend.stream import AnswerStream, Frames, StreamOptions, whole_answer
from neurond.serving import openai
from neurond.serving.choice import Shown
from neurond.serving.edge import Request, Response, exchange_of
from neurond.serving.generation import Generation, Usage
from neurond.serving.params import ChatRequest
from neurond.serving.requests import RequestTable


class ChatResource:
    def __init__(
        self, intake: Intake, node: Node, table: RequestTable, journal: Journal
    ) -> None:
        self._intake = intake
        self._node = node
        self._table = table
        self._journal = journal

    async def on_post(self, req: Request, resp: Response) -> None:
        arrived_s = time.monotonic()
        try:
            prepared = await self._intake.prepare(req)
            generation = Generation(self._table)
            line = prepared.line
            generation.start(prepared.order, line.device, line)
        except ServiceError as error:
            metrics.refused(error.code)
            raise
        meter = metrics.RequestMeter(prepared.request.model, arrived_s)
        exchange = exchange_of(req)
        exchange.on_close(generation.close)
        exchange.on_close(lambda: meter.end(generation, time.monotonic()))
        await generation.committed(self._decision_s(line.device))
        await self._answer(req, resp, prepared, generation, meter)

    async def _answer(
        self,
        req: Request,
        resp: Response,
        prepared: Prepared,
        generation: Generation,
        meter: metrics.RequestMeter,
    ) -> None:
        request = prepared.request
        envelope = openai.new_envelope(request.model, time.time())
        if not request.stream:
            resp.content_type = "application/json"
            answers = await whole_answer(generation)
            resp.data = _whole(request, envelope, answers, generation.usage)
            return
        options = StreamOptions(
            include_usage=request.include_usage,
            count_usage=req.get_header("x-cortex-usage") == "1",
            request_id=exchange_of(req).request_id,
            on_text=lambda: meter.text(time.monotonic()),
            is_stopping=lambda: self._node.is_stopping,
        )
        frames = _frames(request, envelope)
        stream = AnswerStream(generation, frames, options, self._journal)
        resp.content_type = "text/event-stream"
        resp.set_header("cache-control", "no-cache")
        resp.set_header("x-accel-buffering", "no")
        resp.stream = stream.frames()

    def _decision_s(self, device: str) -> float:
        return admission.decision_s(self._node.device_kind(device))


def _frames(request: ChatRequest, envelope: openai.Envelope) -> Frames:
    chunks = openai.ChunkFrames(envelope, include_usage=request.include_usage)
    if request.tools.grammar is None:
        return chunks
    return openai.CallFrames(chunks, envelope.id)


def _whole(
    request: ChatRequest,
    envelope: openai.Envelope,
    ended: Sequence[tuple[Shown, str]],
    usage: Usage,
) -> bytes:
    scored = "logprobs" in request.sampling.given
    answers = [
        openai.text_answer(shown, finish, scored=scored)
        if request.tools.grammar is None
        else openai.call_answer(envelope.id, index, shown, finish, scored=scored)
        for index, (shown, finish) in enumerate(ended)
    ]
    return openai.completion(envelope, answers, usage)
