"""POST /v1/chat/completions: one request from its body to its last frame.

Front-end worker. What happens between the device's `Accepted` and the last frame is the
same for every dialect: see `answering`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ipc.errors import ServiceError
from neurond.frontend import metrics
from neurond.frontend.answering import Answering
from neurond.frontend.intake import Intake
from neurond.frontend.stream import Frames, whole_answer
from neurond.serving import openai
from neurond.serving.choice import Shown
from neurond.serving.edge import Request, Response
from neurond.serving.generation import Usage
from neurond.serving.params import ChatRequest


class ChatResource:
    def __init__(self, intake: Intake, answering: Answering) -> None:
        self._intake = intake
        self._answering = answering

    async def on_post(self, req: Request, resp: Response) -> None:
        arrived_s = time.monotonic()
        try:
            prepared = await self._intake.prepare(req)
        except ServiceError as error:
            metrics.refused(error.code)
            raise
        request, orders = prepared.request, [prepared.order]
        running = await self._answering.start(req, orders, prepared.line, arrived_s)
        envelope = openai.new_envelope(request.model, time.time())
        if request.stream:
            self._answering.stream(
                req,
                resp,
                running,
                _frames(request, envelope),
                include_usage=request.include_usage,
            )
            return
        answers = await whole_answer(running.generation)
        resp.content_type = "application/json"
        resp.data = _whole(request, envelope, answers, running.generation.usage)


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
