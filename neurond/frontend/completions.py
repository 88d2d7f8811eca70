"""POST /v1/completions: raw prompts, one or several, and what follows them.

Front-end worker. The order of the steps is the order of the refusals: body, fields,
model, room, prompts, length, device.

Invariant: a prompt's ids are checked before anything is submitted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ipc.errors import ServiceError
from neurond.frontend import metrics
from neurond.frontend.answering import Answering, Running
from neurond.frontend.intake import Intake, new_submit
from neurond.frontend.stream import whole_answer
from neurond.serving import fields, textframes
from neurond.serving.choice import Order
from neurond.serving.completions import (
    CompletionRequest,
    encoded,
    parse_completion,
)
from neurond.serving.devices import DeviceLine
from neurond.serving.edge import Request, Response, read_json
from neurond.serving.library import Library, ServedModel
from neurond.serving.sampling import resolve
from neurond.serving.textframes import Continued, PromptText, Style, Teller, TextFrames

_TOKENIZER_S = 1.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that may be submitted, and where; an order for each prompt."""

    request: CompletionRequest
    prompts: tuple[PromptText, ...]
    orders: tuple[Order, ...]
    num_scores: int
    line: DeviceLine


class CompletionsResource:
    """`max_sequences`: what a worker has room for at all."""

    def __init__(
        self,
        intake: Intake,
        library: Library,
        answering: Answering,
        *,
        body_bytes: int,
        max_sequences: int,
    ) -> None:
        self._intake = intake
        self._library = library
        self._answering = answering
        self._body_bytes = body_bytes
        self._max_sequences = max_sequences

    async def on_post(self, req: Request, resp: Response) -> None:
        arrived_s = time.monotonic()
        try:
            prepared = await self._prepare(req)
        except ServiceError as error:
            metrics.refused(error.code)
            raise
        running = await self._answering.start(
            req, prepared.orders, prepared.line, arrived_s
        )
        await self._answer(req, resp, prepared, running)

    async def _prepare(self, req: Request) -> Prepared:
        """Raises ServiceError."""
        body = await read_json(req, limit_bytes=self._body_bytes)
        request = parse_completion(body)
        num_sequences = self._num_sequences(request)
        fact = self._intake.admit(request.model, num_sequences=num_sequences)
        served = await self._library.get(request.model, timeout_s=_TOKENIZER_S)
        window = int(fact["context"])
        if request.grammar is not None:
            await self._library.grammars.check(request.grammar)
        ids = await self._library.prompt_work(
            lambda: encoded(request, served, window), size=request.num_chars
        )
        principal = self._intake.principal(req)
        orders = tuple(_orders(request, served, ids, window, principal))
        return Prepared(
            request,
            prompts=tuple(_prompts(request, served, ids)),
            orders=orders,
            num_scores=request.check_scores(sum(map(len, ids))),
            line=self._intake.line(fact, [order.submit for order in orders]),
        )

    def _num_sequences(self, request: CompletionRequest) -> int:
        """Raises ClientError for what could never be taken, however idle the node."""
        num = request.sampling.n * len(request.prompts)
        if num > self._max_sequences:
            wanted = f"at most {self._max_sequences} for all prompts together"
            raise fields.invalid("n", wanted, num)
        return num

    async def _answer(
        self, req: Request, resp: Response, prepared: Prepared, running: Running
    ) -> None:
        request, generation = prepared.request, running.generation
        envelope = textframes.new_envelope(request.model, time.time())
        tellers = _tellers(prepared, running)
        if request.stream:
            include_usage = request.include_usage
            frames = TextFrames(envelope, tellers, include_usage=include_usage)
            self._answering.stream(
                req, resp, running, frames, include_usage=include_usage
            )
            return
        answers = await whole_answer(generation)
        resp.content_type = "application/json"
        resp.data = await self._library.prompt_work(
            lambda: textframes.completion(envelope, tellers, answers, generation.usage),
            size=prepared.num_scores,
        )


def _prompts(
    request: CompletionRequest, served: ServedModel, ids: Sequence[tuple[int, ...]]
) -> list[PromptText]:
    return [
        PromptText(prompt if isinstance(prompt, str) else None, each, served.tokenizer)
        for prompt, each in zip(request.prompts, ids, strict=True)
    ]


def _orders(
    request: CompletionRequest,
    served: ServedModel,
    prompts: Sequence[tuple[int, ...]],
    window: int,
    principal: str,
) -> Iterator[Order]:
    """Raises ClientError."""
    asked, limits = request.sampling, served.limits(window)
    grammar = request.grammar.text if request.grammar else ""
    pieces = Continued(served.tokenizer)
    for index, ids in enumerate(prompts):
        name = request.place(index)
        resolved = resolve(asked, limits, num_prompt=len(ids), param=name)
        submit = new_submit(
            request.model, ids, asked, resolved, principal=principal, grammar=grammar
        )
        yield Order(submit, asked.n, asked.stop, pieces, request.stream)


def _tellers(prepared: Prepared, running: Running) -> list[Teller]:
    request, choices = prepared.request, running.generation.choices
    style = Style(request.echo, request.logprobs, request.prompt_logprobs)
    return [
        Teller(style, prepared.prompts[index // request.sampling.n], choice)
        for index, choice in enumerate(choices)
    ]
